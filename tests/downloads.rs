//! Downloads from servers that misbehave.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::Duration;

use kiln::digest::Digest;
use kiln::fetch::{Download, FetchError, Options, Progress, download};
use kiln::host::interrupt;
use proptest::prelude::*;

use crate::server::{Reply, Request, Server};

/// Bytes without a pattern that repeats within a buffer.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn wanted(folder: &Path, content: &[u8], urls: &[String]) -> Download {
    Download {
        sha256: Digest::of(content),
        size: Some(content.len() as u64),
        urls: urls.to_vec(),
        snapshot: Vec::new(),
        partial: folder.join("partial"),
        target: folder.join("target"),
        label: "thing 1.0".to_owned(),
    }
}

fn options<'a>() -> Options<'a> {
    Options { backoff: Duration::from_millis(5), ..Options::default() }
}

fn run(item: &Download) -> Result<(), FetchError> {
    download(vec![item.clone()], &options())
}

/// The error with the servers' addresses by their number.
fn told(error: &FetchError, servers: &[&Server]) -> String {
    let mut text = error.to_string();
    for (index, server) in servers.iter().enumerate() {
        text = text.replace(&server.url, &format!("http://server{index}"));
    }
    text
}

#[test]
fn many_at_once_with_progress() {
    let content = |i: usize| bytes(20_000 + i * 1000);
    let server =
        Server::start(move |request, _| Reply::of(&content(request.path[1..].parse().unwrap()), request));
    let folder = tempfile::tempdir().unwrap();
    let item = |i: usize| Download {
        partial: folder.path().join(format!("partial/{i}")),
        target: folder.path().join(format!("target/{i}")),
        ..wanted(folder.path(), &bytes(20_000 + i * 1000), &[format!("{}/{i}", server.url)])
    };
    let last = Cell::new(Progress::default());
    let progress = |p: Progress| last.set(p);
    let items: Vec<Download> = (0..12).map(item).collect();
    download(items.clone(), &Options { progress: Some(&progress), ..options() }).unwrap();
    let total = (0..12).map(|i| 20_000 + i * 1000).sum();
    assert_eq!(last.get(), Progress { files_done: 12, files: 12, bytes_done: total, bytes: total });
    for (i, item) in items.iter().enumerate() {
        assert_eq!(Digest::of(&fs::read(&item.target).unwrap()), item.sha256, "{i}");
    }
    assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
    // What is there isn't fetched again.
    let asked = server.requests().len();
    download(items, &options()).unwrap();
    assert_eq!(server.requests().len(), asked);
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let content = bytes(300_000);
    let served = content.clone();
    let server = Server::start(move |request, count| match count {
        0..=3 => Reply::of(&served, request).cut(60_000),
        _ => Reply::of(&served, request),
    });
    let folder = tempfile::tempdir().unwrap();
    let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
    run(&item).unwrap();
    assert_eq!(fs::read(&item.target).unwrap(), content);
    let from: Vec<_> = server.requests().iter().map(|r| r.from).collect();
    assert_eq!(from, [None, Some(60_000), Some(120_000), Some(180_000), Some(240_000)]);
}

#[test]
fn what_an_earlier_run_left_is_taken_up() {
    let content = bytes(100_000);
    let served = content.clone();
    let server = Server::start(move |request, _| Reply::of(&served, request));
    let folder = tempfile::tempdir().unwrap();
    let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
    fs::write(&item.partial, &content[..70_000]).unwrap();
    run(&item).unwrap();
    assert_eq!(server.requests(), [Request { path: "/x".into(), from: Some(70_000) }]);
    // A partial file that is complete already needs no server at all.
    fs::rename(&item.target, &item.partial).unwrap();
    run(&Download { urls: Vec::new(), ..item.clone() }).unwrap();
    assert_eq!(fs::read(&item.target).unwrap(), content);
}

#[test]
fn a_server_without_ranges_serves_as_well() {
    let content = bytes(100_000);
    let served = content.clone();
    let server = Server::start(move |_, _| Reply::whole(&served));
    let folder = tempfile::tempdir().unwrap();
    let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
    fs::write(&item.partial, &content[..70_000]).unwrap();
    run(&item).unwrap();
    assert_eq!(fs::read(&item.target).unwrap(), content);
}

#[test]
fn a_wrong_partial_file_is_thrown_away_once() {
    let content = bytes(100_000);
    for partial in [vec![7; 70_000], vec![7; 100_000], vec![7; 150_000]] {
        let served = content.clone();
        let server = Server::start(move |request, _| Reply::of(&served, request));
        let folder = tempfile::tempdir().unwrap();
        let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
        fs::write(&item.partial, &partial).unwrap();
        run(&item).unwrap();
        assert_eq!(fs::read(&item.target).unwrap(), content);
        assert_eq!(server.requests().len(), 2);
    }
}

#[test]
fn errors_that_may_pass_are_tried_again() {
    let content = bytes(10_000);
    let served = content.clone();
    let server = Server::start(move |request, count| match count {
        0 => Reply::status(500),
        1 => Reply::status(503),
        _ => Reply::of(&served, request),
    });
    let folder = tempfile::tempdir().unwrap();
    run(&wanted(folder.path(), &content, &[format!("{}/x", server.url)])).unwrap();
}

#[test]
fn every_mirror_is_tried_and_told_of() {
    let content = bytes(10_000);
    let (other, longer) = (bytes(10_001), vec![9; 10_000]);
    let wrong_bytes = Server::start(move |request, _| Reply::of(&longer, request));
    let wrong_size = Server::start(move |request, _| Reply::of(&other, request));
    let broken = Server::start(|_, _| Reply::status(500));
    let forbidden = Server::start(|_, _| Reply::status(403));
    let gone = Server::start(|_, _| Reply::status(404));
    let all = [&wrong_bytes, &wrong_size, &broken, &forbidden, &gone];
    let urls: Vec<String> = all.iter().map(|s| format!("{}/x", s.url)).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut item = wanted(folder.path(), &content, &urls);
    let error = run(&item).unwrap_err();
    insta::assert_snapshot!(told(&error, &all));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing wrong is kept");

    let served = content.clone();
    let good = Server::start(move |request, _| Reply::of(&served, request));
    item.urls.push(format!("{}/x", good.url));
    run(&item).unwrap();
    assert_eq!(fs::read(&item.target).unwrap(), content);
}

#[test]
fn the_snapshot_is_asked_when_a_mirror_has_dropped_it() {
    let content = bytes(10_000);
    let served = content.clone();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/snapshot/archive/debian/20260101T000000Z/pool/x.deb" => Reply::of(&served, request),
        _ => Reply::status(404),
    });
    let folder = tempfile::tempdir().unwrap();
    let mut item = wanted(folder.path(), &content, &[format!("{}/debian/pool/x.deb", server.url)]);
    let error = run(&item).unwrap_err();
    insta::assert_snapshot!(told(&error, &[&server]));

    item.snapshot = vec![format!("{}/snapshot/archive/debian/20260101T000000Z/pool/x.deb", server.url)];
    run(&item).unwrap();
    assert_eq!(fs::read(&item.target).unwrap(), content);

    // A mirror that only has trouble is no reason to ask it.
    let broken = Server::start(|_, _| Reply::status(500));
    let folder = tempfile::tempdir().unwrap();
    let item = Download { urls: vec![format!("{}/x", broken.url)], ..wanted(folder.path(), &content, &[]) };
    let item = Download { snapshot: vec![format!("{}/x", server.url)], ..item };
    assert!(!run(&item).unwrap_err().to_string().contains(&server.url));
}

#[test]
fn a_dead_server_is_asked_only_once() {
    let content = |i: usize| bytes(1000 + i);
    let good =
        Server::start(move |request, _| Reply::of(&content(request.path[1..].parse().unwrap()), request));
    // A port that nobody listens on: it was free a moment ago.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let items = (0..40).map(|i| Download {
        partial: folder.path().join(format!("{i}.partial")),
        target: folder.path().join(format!("{i}")),
        ..wanted(
            folder.path(),
            &bytes(1000 + i),
            &[format!("http://{dead}/{i}"), format!("{}/{i}", good.url)],
        )
    });
    // With 40 files, each waiting twice for the dead one, this would take 40 seconds.
    let options = Options { backoff: Duration::from_millis(300), ..Options::default() };
    let start = std::time::Instant::now();
    download(items.collect(), &options).unwrap();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn files_of_this_host_are_mirrors_too() {
    let folder = tempfile::tempdir().unwrap();
    let content = bytes(5000);
    let mirror = folder.path().join("mirror file");
    fs::write(&mirror, &content).unwrap();
    for url in [format!("{}", mirror.display()), format!("file://{}", mirror.display())] {
        let item = wanted(folder.path(), &content, &[format!("{url}.not-there"), url]);
        run(&item).unwrap();
        assert_eq!(fs::read(&item.target).unwrap(), content);
        fs::remove_file(&item.target).unwrap();
    }
}

#[test]
fn a_file_of_unknown_size_is_known_by_its_digest() {
    let content = bytes(5000);
    let served = content.clone();
    let server = Server::start(move |request, count| match count {
        0 => Reply::of(&served, request).cut(100),
        _ => Reply::of(&served, request),
    });
    let folder = tempfile::tempdir().unwrap();
    let item = Download { size: None, ..wanted(folder.path(), &content, &[format!("{}/x", server.url)]) };
    run(&item).unwrap();
    assert_eq!(fs::read(&item.target).unwrap(), content);
}

#[test]
fn an_unwritable_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let item = Download { partial: file.join("partial"), ..wanted(folder.path(), b"x", &[]) };
    let error = run(&item).unwrap_err().to_string();
    assert!(error.contains(&file.display().to_string()), "{error}");
}

#[test]
fn two_that_want_the_same_file_share_it() {
    let content = bytes(200_000);
    let served = content.clone();
    let server = Server::start(move |request, _| {
        std::thread::sleep(Duration::from_millis(200));
        Reply::of(&served, request)
    });
    let folder = tempfile::tempdir().unwrap();
    let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| run(&item).unwrap());
        }
    });
    assert_eq!(fs::read(&item.target).unwrap(), content);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_target_of_the_wrong_size_is_fetched_again() {
    let content = bytes(9000);
    let served = content.clone();
    let server = Server::start(move |request, _| Reply::of(&served, request));
    let folder = tempfile::tempdir().unwrap();
    let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
    fs::write(&item.target, &content[..4000]).unwrap();
    run(&item).unwrap();
    assert_eq!(fs::read(&item.target).unwrap(), content);
}

/// What a server may do to one request.
fn any_reply() -> impl Strategy<Value = (u8, usize)> {
    (0..7_u8, 0..40_000_usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever servers do and earlier runs left, the file is right or not there.
    #[test]
    fn no_server_can_make_a_wrong_file(
        replies in proptest::collection::vec(any_reply(), 0..12),
        left in proptest::option::of((0..40_000_usize, any::<bool>())),
    ) {
        let content = bytes(30_000);
        let served = content.clone();
        let server = Server::start(move |request, count| {
            let Some(&(kind, n)) = replies.get(count) else { return Reply::of(&served, request) };
            let good = Reply::of(&served, request);
            match kind {
                0 => good.cut(n),
                1 => Reply::status(500),
                2 => Reply::whole(&served).cut(n),
                3 => Reply { body: vec![3; good.body.len()], ..good },
                4 => Reply { content_range: Some(format!("bytes {n}-{}/30000", n + 1)), ..good },
                5 => Reply::whole(&bytes(n)),
                _ => Reply::status([404, 416, 206, 429][n % 4]),
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
        if let Some((len, right)) = left {
            let wrong = vec![1; len];
            fs::write(&item.partial, if right { &content[..len.min(30_000)] } else { &wrong[..] }).unwrap();
        }
        match run(&item) {
            Ok(()) => prop_assert_eq!(fs::read(&item.target).unwrap(), content.clone()),
            Err(_) => prop_assert!(!item.target.exists()),
        }
        // In the end the server behaves, and nothing of what was before stands in the way.
        for _ in 0..12 {
            if run(&item).is_ok() { break }
        }
        prop_assert_eq!(fs::read(&item.target).unwrap(), content);
    }
}

#[test]
fn ctrl_c_does_not_wait_for_a_silent_server() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "downloads::interrupted", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// No test by itself: the signal reaches the whole process.
#[test]
#[ignore = "run by another test in a process of its own"]
fn interrupted() {
    interrupt::install().unwrap();
    let content = bytes(50_000);
    let served = content.clone();
    let server = Server::start(move |request, count| {
        if count > 0 {
            std::thread::sleep(Duration::from_secs(30));
        }
        Reply::of(&served, request).cut(20_000)
    });
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(600));
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
    });
    let folder = tempfile::tempdir().unwrap();
    let item = wanted(folder.path(), &content, &[format!("{}/x", server.url)]);
    let start = std::time::Instant::now();
    assert!(matches!(run(&item), Err(FetchError::Interrupted(_))));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(fs::read(&item.partial).unwrap(), &content[..20_000]);
}
