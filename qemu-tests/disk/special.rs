//! Whatever a tree can hold arrives on the file system, as debugfs shows it.

use std::collections::BTreeSet;
use std::fs;

use kiln::layout::Holds;
use kiln::system::{Disk, ExtraFs, ExtraPartition};
use kiln::tree::{Content, Kind, Node, Tree};
use kiln::units::{Bytes, MIB};

use super::fixture::{EPOCH, Fixture, layout_with, write};
use super::{check, run};

/// An access control list as the kernel hands it out (`system.posix_acl_access`, version 2): user::rwx, user:1000:r--,
/// group::r-x, mask::r-x, other::---.
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255,
    16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

fn tree() -> Tree {
    let mut tree = Tree::new();
    let file = |text: &str| Kind::File(Content::bytes(text));
    let mut add = |path: &[u8], kind: Kind, mode| {
        tree.insert_with_parents(path, Node::new(kind, mode, EPOCH));
    };
    add(b"", Kind::Dir, 0o755);
    add(b"dev/null", Kind::CharDev { major: 1, minor: 3 }, 0o666);
    add(b"dev/sda", Kind::BlockDev { major: 8, minor: 300 }, 0o660);
    add(b"fifo", Kind::Fifo, 0o600);
    add(b"hard/a", file("hard"), 0o4755);
    add(b"hard/b", Kind::HardLink(b"hard/a".to_vec()), 0);
    add(b"long-link", Kind::Symlink(vec![b't'; 4000]), 0o777);
    add(&[vec![b'n'; 255], b"/x".to_vec()].concat(), file("x"), 0o644);
    add(b"bytes-\xff\xfe", file("bytes"), 0o644);
    add(b"quote\" and blank", file("quote"), 0o644);
    add(b"sparse", Kind::File(Content::bytes(vec![0; 3 << 20])), 0o644);
    add(b"srv/data/below", file("on the other file system"), 0o600);
    add(b"srv/data/link", Kind::HardLink(b"srv/data/below".to_vec()), 0);
    let mut owned = Node::new(file("owned"), 0o2750, -7).owned_by(1_000_000, 3_000_000_000);
    owned.xattrs.insert(
        b"security.capability".to_vec(),
        vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0],
    );
    owned.xattrs.insert(b"user.origin".to_vec(), b"one\ntwo\0three".to_vec());
    owned.xattrs.insert(b"system.posix_acl_access".to_vec(), ACL.to_vec());
    tree.insert("owned", owned.clone());
    owned.xattrs.remove(&b"security.capability"[..]);
    tree.insert("quote\" and blank", owned);
    tree
}

#[test]
fn a_tree_with_everything_arrives_whole() {
    let (fixture, tree) = (Fixture::get(), tree());
    let mut disk = Disk { esp_size: Bytes(64 * MIB), label: "root".into(), grow: true, ..Disk::default() };
    let data = ExtraPartition {
        enable: true,
        size: Bytes(32 * MIB),
        type_guid: String::new(),
        fs: ExtraFs::Ext4,
        mount: "/srv/data".into(),
    };
    disk.partitions.insert("data".into(), data);
    let layout = layout_with(&tree, &disk);
    let image = write(fixture, &tree, &layout, &BTreeSet::new(), "special.raw");
    check(&image.path, &layout);
    let ask = |partition: &str, request: &str| {
        let partition = layout.partition(partition).expect("a partition");
        assert!(matches!(partition.holds, Holds::Ext4 { .. }));
        run("debugfs", &["-R", request, &format!("{}?offset={}", image.path.display(), partition.offset().0)])
    };
    let expect = |request: &str, parts: &[&str]| {
        let text = ask("root", request);
        for part in parts {
            assert!(text.contains(part), "{request}: {part} is missing in\n{text}");
        }
    };
    expect("stat /dev/null", &["Type: character special", "Mode:  0666", "01:03"]);
    expect("stat /dev/sda", &["Type: block special", "Mode:  0660"]);
    expect("stat /fifo", &["Type: FIFO", "Mode:  0600"]);
    expect("stat /hard/b", &["Mode:  04755", "Links: 2"]);
    expect("stat /long-link", &["Type: symlink", "Size: 4000"]);
    expect("stat /sparse", &["Size: 3145728", "Blockcount: 6144"]);
    expect(&format!("stat /{}/x", "n".repeat(255)), &["Size: 1"]);
    // debugfs prints ids as signed numbers.
    expect("stat /owned", &["User: 1000000", "Group: -1294967296", "Mode:  02750", "mtime: 0xfffffff9"]);
    expect(
        "ea_list /owned",
        &["security.capability (20)", "user.origin (13)", "system.posix_acl_access (28)"],
    );
    expect("ea_get /owned user.origin", &["6f 6e 65 0a 74 77 6f 00 74 68 72 65 65"]);
    expect("ea_list \"/quote\"\" and blank\"", &["user.origin (13)", "system.posix_acl_access (28)"]);
    expect("ls /srv/data", &["."]);
    assert!(!ask("root", "ls /srv/data").contains("below"));
    assert!(ask("data", "stat /link").contains("Links: 2"));
    fs::remove_file(&image.path).expect("removed");
}
