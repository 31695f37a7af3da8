//! Trees made by hand, systems, and what comes out of them, exactly.

mod right;
mod wrong;

use std::collections::BTreeMap;

use crate::rootfs::{ComposeContext, Composed, RootfsError, SourceError, SourceFiles, SourceNode, compose};
use crate::system::System;
use crate::tree::{Content, Kind, NoPacks, Node, Tree};

/// Time of the tests' packages and of the image: 2026-01-01 00:00:00 UTC, and a day later.
const PACKAGED: i64 = 1_767_225_600;
const EPOCH: i64 = PACKAGED + 86_400;

/// A small Debian: merged /usr, accounts, systemd with a few units.
fn base() -> Tree {
    let mut tree = Tree::new();
    tree.insert("", Node::new(Kind::Dir, 0o755, PACKAGED));
    for dir in ["bin", "sbin", "lib"] {
        link(&mut tree, dir, &format!("usr/{dir}"));
    }
    for dir in
        ["usr/bin", "usr/sbin", "usr/lib/systemd/system", "var/lib/dbus", "run", "tmp", "etc/systemd/system"]
    {
        tree.insert_with_parents(dir, Node::new(Kind::Dir, 0o755, PACKAGED));
    }
    for program in
        ["usr/bin/bash", "usr/bin/sudo", "usr/bin/apt", "usr/bin/systemd-repart", "usr/sbin/nologin"]
    {
        file(&mut tree, program, "");
    }
    file(
        &mut tree,
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n",
    );
    file(&mut tree, "etc/group", "root:x:0:\nadm:x:4:\nsudo:x:27:\nwww-data:x:33:\nshadow:x:42:\n");
    file(&mut tree, "etc/shadow", "root:*:20000:0:99999:7:::\nwww-data:*:20000:0:99999:7:::\n");
    file(&mut tree, "etc/gshadow", "root:*::\nadm:*::\nsudo:*::\nwww-data:*::\nshadow:*::\n");
    file(&mut tree, "etc/skel/.profile", "# profile\n");
    file(&mut tree, "usr/lib/os-release", "ID=debian\n");
    link(&mut tree, "etc/os-release", "../usr/lib/os-release");
    let units = "usr/lib/systemd/system";
    let service = |target: &str| format!("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy={target}\n");
    file(&mut tree, &format!("{units}/systemd-networkd.service"), &service("multi-user.target"));
    file(&mut tree, &format!("{units}/nginx.service"), &service("multi-user.target"));
    file(&mut tree, &format!("{units}/static.service"), "[Service]\nExecStart=/bin/true\n");
    file(
        &mut tree,
        &format!("{units}/getty@.service"),
        "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
    );
    file(&mut tree, &format!("{units}/multi-user.target"), "[Unit]\n");
    file(&mut tree, &format!("{units}/getty.target"), "[Unit]\n");
    tree
}

fn file(tree: &mut Tree, path: &str, text: &str) {
    tree.insert_with_parents(path, Node::new(Kind::File(Content::bytes(text)), 0o644, PACKAGED));
}

fn link(tree: &mut Tree, path: &str, target: &str) {
    tree.insert_with_parents(path, Node::new(Kind::Symlink(target.into()), 0o777, PACKAGED));
}

/// Sources beside the profile, in memory.
#[derive(Default)]
struct Beside(BTreeMap<&'static str, SourceNode>);

impl SourceFiles for Beside {
    fn source(&self, name: &str) -> Result<SourceNode, SourceError> {
        self.0.get(name).cloned().ok_or_else(|| "no such file".into())
    }

    fn key(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        match self.source(name)? {
            SourceNode::File { content: Content::Bytes(bytes), .. } => Ok(bytes.to_vec()),
            _ => Err("not a file".into()),
        }
    }
}

/// A system from JSON, on top of the smallest one that has the defaults which the contracts would fill in.
fn system(json: serde_json::Value) -> System {
    let mut all = serde_json::json!({ "name": "test", "timezone": "UTC", "locale": "C.UTF-8", "network": { "manager": "none" } });
    merge(&mut all, json);
    serde_json::from_value(all).expect("a system")
}

fn merge(base: &mut serde_json::Value, over: serde_json::Value) {
    match (base, over) {
        (serde_json::Value::Object(base), serde_json::Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn try_compose(tree: Tree, json: serde_json::Value) -> Result<Composed, RootfsError> {
    let ctx =
        ComposeContext { epoch: EPOCH, root_uuid: uuid::Uuid::from_u128(1), ..ComposeContext::default() };
    compose(tree, &NoPacks, &system(json), &Beside::default(), &ctx)
}

fn composed(tree: Tree, json: serde_json::Value) -> Tree {
    try_compose(tree, json).expect("it composes").tree
}

/// The text of a file.
fn text(tree: &Tree, path: &str) -> String {
    match tree.get(path).map(|n| &n.kind) {
        Some(Kind::File(content)) => String::from_utf8(content.read(&NoPacks).unwrap()).unwrap(),
        other => panic!("{path} is {other:?}"),
    }
}

/// A node's mode, owner and group, or a link's target.
fn rights(tree: &Tree, path: &str) -> String {
    match tree.get(path) {
        Some(Node { kind: Kind::Symlink(target), .. }) => format!("-> {}", String::from_utf8_lossy(target)),
        Some(node) => format!("{:04o} {}:{}", node.mode, node.uid, node.gid),
        None => "absent".to_owned(),
    }
}
