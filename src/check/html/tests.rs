//! The page's structure; its looks are tested in a browser (`qemu-tests/report_page.rs`).

use super::{html, sample, time};

/// Opening tags of elements that have an end must be closed in order.
fn balanced(page: &str) {
    const VOID: [&str; 3] = ["meta", "img", "!doctype"];
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let (inside, _) = tag.split_once('>').unwrap_or_else(|| panic!("no end: <{tag}"));
        let name = inside.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap_or_default();
        if let Some(closed) = inside.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "…<{tag}");
        } else if !VOID.contains(&name) && !inside.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_failing_report_says_all() {
    let page = html(&sample::failing());
    balanced(&page);
    for part in [
        "<html lang=\"en\">",
        "<h1>server <span class=\"verdict failed\">failed</span></h1>",
        "<dd>4 passed, 1 failed, 2 skipped</dd>",
        "<dd>1 of 2 passed</dd>",
        "<a href=\"#machine-2\">ovmf-nvme</a>",
        "<h2 id=\"machine-2\">ovmf-nvme",
        "compare root= in /boot/grub/grub.cfg with the file system&#39;s UUID",
        "<summary>Failed checks (1)</summary>",
        "0.2 s in 3 tries",
        "bind() to 0.0.0.0:80 failed",
        "src=\"data:image/png;base64,iVBORw0KGgo",
        "<summary>Serial console (2 lines)</summary>",
        "2026-11-20 00:00:00 UTC",
    ] {
        assert!(page.contains(part), "{part} is missing in:\n{page}");
    }
    // What failed stands before what passed.
    let place = |part: &str| page.rfind(part).expect(part);
    assert!(place("Failed checks of ovmf-nvme") < place("Skipped checks of ovmf-nvme"));
    assert!(page.matches("<caption>").count() == page.matches("<table").count());
}

#[test]
fn hostile_texts_stay_texts() {
    let page = html(&sample::hostile());
    balanced(&page);
    assert!(!page.contains("<script") && !page.contains("<img src=http") && !page.contains("alert('1')"));
    assert!(page.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
    assert_eq!(page.matches("<img ").count(), 1);
}

#[test]
fn a_report_without_machines_is_a_page() {
    let mut report = sample::failing();
    report.machines.clear();
    report.statics.clear();
    balanced(&html(&report));
}

#[test]
fn times_are_readable() {
    assert_eq!([0.26, 119.9, 120.0, 4000.4].map(time), ["0.3 s", "119.9 s", "2 min 0 s", "66 min 40 s"]);
}
