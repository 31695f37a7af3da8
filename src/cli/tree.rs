//! `kiln tree PROFILE [PATH]`: the image's file tree, without making a disk of it.

use std::fmt::Write as _;

use serde_json::json;

use super::Context;
use super::report::Failure;
use super::session::ProfileArgs;
use crate::tree::{Kind, Node, Tree, normal};

/// Arguments of `kiln tree`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Only this path and what lies below it
    #[arg(value_name = "PATH", default_value = "/")]
    path: String,
    /// Print the bytes of the file at PATH instead
    #[arg(long)]
    cat: bool,
}

/// Prints a line for each node: mode, owner, size, path, link target.
///
/// # Errors
/// Those of the phases up to the tree; a path that isn't there.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let request = args.profile.request(cx);
    args.profile.in_session(cx, |session| {
        let locked = session.locked_already(session.evaluate(&request)?)?;
        let tree = session.load_tree(&session.tree(&locked)?)?;
        if args.cat {
            return cat(&tree, &args.path, session.store);
        }
        let nodes = select(&tree, &args.path)?;
        let values: Vec<_> =
            if cx.json { nodes.iter().map(|(p, n)| value(p, n)).collect() } else { Vec::new() };
        cx.print(&values, || nodes.iter().map(|(p, n)| line(p, n)).collect())
    })
}

/// The node at `path`, links on the way followed, and all below it.
fn select<'t>(tree: &'t Tree, path: &str) -> Result<Vec<(&'t [u8], &'t Node)>, Failure> {
    let wanted = normal(path.as_bytes());
    let at = if tree.get(&wanted).is_some() { wanted } else { tree.resolve(path).unwrap_or(wanted) };
    let this = tree.iter().find(|(p, _)| **p == at);
    let below = tree.below(&at).map(|(p, n)| (p.as_slice(), n));
    let nodes: Vec<_> = this.map(|(p, n)| (p.as_slice(), n)).into_iter().chain(below).collect();
    if nodes.is_empty() { Err(missing(path)) } else { Ok(nodes) }
}

fn missing(path: &str) -> Failure {
    Failure::usage("no-such-path", format!("the tree has no {path}"))
}

fn cat(tree: &Tree, path: &str, packs: &dyn crate::tree::Packs) -> Result<(), Failure> {
    let at = tree.resolve(path).ok_or_else(|| missing(path))?;
    let node = tree.get(&at).ok_or_else(|| missing(path))?;
    let node = match &node.kind {
        Kind::HardLink(target) => tree.get(target).ok_or_else(|| missing(path))?,
        _ => node,
    };
    let Kind::File(content) = &node.kind else {
        return Err(Failure::usage("no-file", format!("{path} is no regular file")));
    };
    let bytes = content.read(packs).map_err(|e| Failure::of("store", &e))?;
    super::output(&bytes)
}

fn line(path: &[u8], node: &Node) -> String {
    let (letter, size, target) = match &node.kind {
        Kind::Dir => ('d', 0, None),
        Kind::File(content) => ('-', content.len(), None),
        Kind::Symlink(target) => ('l', target.len() as u64, Some((" -> ", target))),
        Kind::HardLink(target) => ('h', 0, Some((" = /", target))),
        Kind::CharDev { .. } => ('c', 0, None),
        Kind::BlockDev { .. } => ('b', 0, None),
        Kind::Fifo => ('p', 0, None),
    };
    let mut text = format!(
        "{letter}{:04o} {:>5}:{:<5} {size:>10} /{}",
        node.mode,
        node.uid,
        node.gid,
        String::from_utf8_lossy(path)
    );
    if let Some((arrow, target)) = target {
        let _ = write!(text, "{arrow}{}", String::from_utf8_lossy(target));
    }
    text.push('\n');
    text
}

fn value(path: &[u8], node: &Node) -> serde_json::Value {
    let mut value = json!({
        "path": format!("/{}", String::from_utf8_lossy(path)),
        "mode": format!("{:04o}", node.mode), "uid": node.uid, "gid": node.gid, "mtime": node.mtime,
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let more = match &node.kind {
        Kind::Dir => json!({ "type": "directory" }),
        Kind::File(content) => json!({ "type": "file", "size": content.len(), "sha256": content.sha256() }),
        Kind::Symlink(target) => json!({ "type": "symlink", "target": text(target) }),
        Kind::HardLink(target) => json!({ "type": "hardlink", "target": format!("/{}", text(target)) }),
        Kind::CharDev { major, minor } => json!({ "type": "char", "major": major, "minor": minor }),
        Kind::BlockDev { major, minor } => json!({ "type": "block", "major": major, "minor": minor }),
        Kind::Fifo => json!({ "type": "fifo" }),
    };
    if let (Some(value), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
        let xattrs = node.xattrs.iter().map(|(k, v)| (text(k), crate::digest::hex(v).into()));
        value.insert("xattrs".into(), serde_json::Value::Object(xattrs.collect()));
    }
    value
}
