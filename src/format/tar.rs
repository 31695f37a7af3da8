//! Streams nodes as a pax archive (POSIX.1-2017, "pax Interchange Format"), written for mkfs.erofs to read.
//!
//! Names, link targets and attributes are bytes: every extended header says `hdrcharset=BINARY`, so that the reader's
//! locale doesn't matter. Values that a ustar header can't hold (long names, large owners, negative times) go into the
//! extended header. The bytes depend on nothing but the entries.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::digest::Digest;
use crate::tree::{Content, Kind, Node, Packs};

/// Size of a tar block.
const BLOCK: usize = 512;
/// Bytes gathered before they are handed on: what a pipe of the largest unprivileged size takes at once.
const BUFFER: usize = 1 << 20;
/// Largest name or link target of a ustar header, without the prefix field (which is not used).
const NAME_MAX: usize = 100;
/// Largest owner of a ustar header: seven octal digits.
const ID_MAX: u64 = 0o7777777;
/// Largest size or time of a ustar header: eleven octal digits.
const NUMBER_MAX: u64 = 0o77777777777;
/// Largest device number of a ustar header: as owners.
const DEVICE_MAX: u32 = 0o7777777;

/// Writes entries in the order in which it is given them.
pub struct Writer<'a, W: Write> {
    out: W,
    packs: &'a dyn Packs,
    /// The pack that was read last: neighbours mostly lie in one.
    open: Option<(Digest, Arc<File>)>,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Writer<'a, W> {
    /// A writer into `out` that takes packed contents from `packs`.
    pub fn new(out: W, packs: &'a dyn Packs) -> Writer<'a, W> {
        Writer { out, packs, open: None, buffer: Vec::with_capacity(BUFFER * 2) }
    }

    /// Appends `node` under `path` (empty for the root). A hard link's target must have been written before.
    ///
    /// # Errors
    /// Whatever reading a pack or writing fails with; a device number above 2²¹−1, which the format can't hold.
    pub fn entry(&mut self, path: &[u8], node: &Node) -> io::Result<()> {
        let header = Header::of(path, node)?;
        let mut records = header.pax_records();
        if !matches!(node.kind, Kind::HardLink(_)) {
            for (name, value) in &node.xattrs {
                pax_record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
            }
        }
        if !records.is_empty() {
            let mut all = Vec::with_capacity(records.len() + 32);
            pax_record(&mut all, b"hdrcharset", b"BINARY");
            all.append(&mut records);
            self.buffer.extend_from_slice(&Header::extended(all.len() as u64).block());
            self.buffer.extend_from_slice(&all);
            self.pad();
        }
        self.buffer.extend_from_slice(&header.block());
        if let Kind::File(content) = &node.kind {
            self.content(content)?;
            self.pad();
        }
        self.flush_if_full()
    }

    /// Ends the archive and hands the writer back.
    ///
    /// # Errors
    /// Whatever writing fails with.
    pub fn finish(mut self) -> io::Result<W> {
        self.buffer.resize(self.buffer.len() + 2 * BLOCK, 0);
        self.out.write_all(&self.buffer)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn content(&mut self, content: &Content) -> io::Result<()> {
        match content {
            Content::Bytes(bytes) => {
                for chunk in bytes.chunks(BUFFER) {
                    self.buffer.extend_from_slice(chunk);
                    self.flush_if_full()?;
                }
            }
            Content::Packed { pack, offset, len, .. } => {
                let file = self.pack(pack)?;
                let mut at = *offset;
                let end = offset.checked_add(*len).ok_or(io::ErrorKind::InvalidData)?;
                while at < end {
                    let n = (end - at).min((BUFFER * 2 - self.buffer.len().min(BUFFER)) as u64);
                    let old = self.buffer.len();
                    self.buffer.resize(old + n as usize, 0);
                    file.read_exact_at(&mut self.buffer[old..], at)?;
                    at += n;
                    self.flush_if_full()?;
                }
            }
        }
        Ok(())
    }

    fn pack(&mut self, pack: &Digest) -> io::Result<Arc<File>> {
        if let Some((digest, file)) = &self.open
            && digest == pack
        {
            return Ok(file.clone());
        }
        let file = self.packs.open(pack)?;
        self.open = Some((*pack, file.clone()));
        Ok(file)
    }

    /// Hands on whole blocks once there are many; what remains keeps its place within a block.
    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER {
            let whole = self.buffer.len() / BLOCK * BLOCK;
            self.out.write_all(&self.buffer[..whole])?;
            self.buffer.drain(..whole);
        }
        Ok(())
    }

    fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
    }
}

/// The fields of a header, before they are known to fit.
struct Header<'a> {
    name: Vec<u8>,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: i64,
    kind: u8,
    link: &'a [u8],
    device: (u32, u32),
}

impl<'a> Header<'a> {
    fn of(path: &[u8], node: &'a Node) -> io::Result<Header<'a>> {
        let mut name = b"./".to_vec();
        name.extend_from_slice(path);
        let mut header = Header {
            name,
            mode: node.mode,
            uid: node.uid.into(),
            gid: node.gid.into(),
            size: 0,
            mtime: node.mtime,
            kind: b'0',
            link: b"",
            device: (0, 0),
        };
        match &node.kind {
            Kind::File(content) => header.size = content.len(),
            Kind::HardLink(target) => (header.kind, header.link) = (b'1', target),
            Kind::Symlink(target) => (header.kind, header.link) = (b'2', target),
            Kind::CharDev { major, minor } => (header.kind, header.device) = (b'3', (*major, *minor)),
            Kind::BlockDev { major, minor } => (header.kind, header.device) = (b'4', (*major, *minor)),
            Kind::Dir => header.kind = b'5',
            Kind::Fifo => header.kind = b'6',
        }
        if header.kind == b'5' && !path.is_empty() {
            header.name.push(b'/');
        }
        if header.device.0.max(header.device.1) > DEVICE_MAX {
            let (major, minor) = header.device;
            let path = String::from_utf8_lossy(path);
            let text = format!("{path}: device {major}:{minor} has a number above {DEVICE_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(header)
    }

    /// The header of an extended header of `size` bytes.
    fn extended(size: u64) -> Header<'static> {
        let (name, device) = (b"./PaxHeaders/x".to_vec(), (0, 0));
        Header { name, mode: 0o644, uid: 0, gid: 0, size, mtime: 0, kind: b'x', link: b"", device }
    }

    /// A hard link's target is a name in the archive, so that it is written as the names are.
    fn link(&self) -> Vec<u8> {
        if self.kind == b'1' { [b"./", self.link].concat() } else { self.link.to_vec() }
    }

    /// Records for the fields that the header has no room for.
    fn pax_records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let link = self.link();
        for (key, value) in [(&b"path"[..], &self.name), (b"linkpath", &link)] {
            if value.len() > NAME_MAX {
                pax_record(&mut records, key, value);
            }
        }
        for (key, value, max) in
            [(&b"uid"[..], self.uid, ID_MAX), (b"gid", self.gid, ID_MAX), (b"size", self.size, NUMBER_MAX)]
        {
            if value > max {
                pax_record(&mut records, key, value.to_string().as_bytes());
            }
        }
        if !(0..=NUMBER_MAX as i64).contains(&self.mtime) {
            pax_record(&mut records, b"mtime", self.mtime.to_string().as_bytes());
        }
        records
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(NAME_MAX)];
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let octal = |value: u64, digits: usize, max: u64| {
            let value = if value > max { 0 } else { value };
            format!("{value:0digits$o}").into_bytes()
        };
        put(0, &self.name);
        put(100, &octal(self.mode.into(), 7, ID_MAX));
        put(108, &octal(self.uid, 7, ID_MAX));
        put(116, &octal(self.gid, 7, ID_MAX));
        put(124, &octal(self.size, 11, NUMBER_MAX));
        put(136, &octal(u64::try_from(self.mtime).unwrap_or(0), 11, NUMBER_MAX));
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link());
        put(257, b"ustar\x0000");
        if matches!(self.kind, b'3' | b'4') {
            put(329, &octal(self.device.0.into(), 7, ID_MAX));
            put(337, &octal(self.device.1.into(), 7, ID_MAX));
        }
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Appends `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{NoPacks, Tree};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn archive(tree: &Tree) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &NoPacks);
        for (path, node) in tree.iter() {
            writer.entry(path, node).unwrap();
        }
        writer.finish().unwrap()
    }

    fn sample() -> Tree {
        let mut tree = Tree::new();
        let mut add = |path: &str, kind: Kind, mode| {
            tree.insert_with_parents(path, Node::new(kind, mode, 1_700_000_000))
        };
        add("", Kind::Dir, 0o755);
        add("bin/su", Kind::File(Content::bytes("su")), 0o4755);
        add("bin/su2", Kind::HardLink(b"bin/su".to_vec()), 0);
        add("dev/null", Kind::CharDev { major: 1, minor: 3 }, 0o666);
        add("link", Kind::Symlink("x".repeat(300).into()), 0o777);
        add(&format!("{}/{}", "d".repeat(200), "f".repeat(200)), Kind::Fifo, 0o600);
        let mut file =
            Node::new(Kind::File(Content::bytes("cap")), 0o755, -5).owned_by(3_000_000_000, 1_000_000);
        file.xattrs.insert(b"security.capability".to_vec(), vec![1, 0, 0, 2, b'\n', b'=', 0xff]);
        tree.insert(b"bin/p\xff", file);
        tree
    }

    /// An entry as it stands in an archive: its header, its pax records, its bytes.
    struct Read {
        header: tar::Header,
        pax: BTreeMap<String, Vec<u8>>,
        content: Vec<u8>,
    }

    /// Reads an archive block by block. The `tar` crate's own iterator stumbles over newlines within pax records.
    fn read(mut bytes: &[u8]) -> Vec<Read> {
        let (mut entries, mut pax) = (Vec::new(), BTreeMap::new());
        while bytes[0] != 0 {
            let header = tar::Header::from_byte_slice(&bytes[..BLOCK]).clone();
            let sum: u32 =
                (0..BLOCK).map(|i| if (148..156).contains(&i) { 32 } else { u32::from(bytes[i]) }).sum();
            assert_eq!(header.cksum().unwrap(), sum);
            let size = header.entry_size().unwrap() as usize;
            let content = bytes[BLOCK..BLOCK + size].to_vec();
            bytes = &bytes[BLOCK + size.next_multiple_of(BLOCK)..];
            if header.entry_type().is_pax_local_extensions() {
                pax = records(&content);
            } else {
                entries.push(Read { header, pax: std::mem::take(&mut pax), content });
            }
        }
        assert_eq!(bytes, [0; 2 * BLOCK]);
        entries
    }

    fn records(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut records = BTreeMap::new();
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|&b| b == b' ').unwrap();
            let len: usize = std::str::from_utf8(&bytes[..blank]).unwrap().parse().unwrap();
            let record = bytes[blank + 1..len].strip_suffix(b"\n").unwrap();
            let equals = record.iter().position(|&b| b == b'=').unwrap();
            records
                .insert(String::from_utf8(record[..equals].to_vec()).unwrap(), record[equals + 1..].to_vec());
            bytes = &bytes[len..];
        }
        records
    }

    impl Read {
        fn text(&self) -> String {
            let header = &self.header;
            let pax: Vec<String> =
                self.pax.iter().map(|(k, v)| format!("{k}={}", v.escape_ascii())).collect();
            format!(
                "{} {:04o} {}:{} {} {} -> {} [{}] {}\n",
                char::from(header.entry_type().as_byte()),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                header.mtime().unwrap(),
                header.path_bytes().escape_ascii(),
                header.link_name_bytes().unwrap_or_default().escape_ascii(),
                pax.join(" "),
                self.content.escape_ascii(),
            )
        }
    }

    #[test]
    fn an_archive_reads_as_it_was_meant() {
        let bytes = archive(&sample());
        insta::assert_snapshot!(read(&bytes).iter().map(Read::text).collect::<String>());
        insta::assert_snapshot!(Digest::of(&bytes).short());
    }

    #[test]
    fn gnu_tar_reads_it() {
        use std::process::{Command, Stdio};
        let bytes = archive(&sample());
        let mut child = Command::new("tar")
            .args(["--numeric-owner", "-tvf", "-"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success());
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("-rwxr-xr-x 3000000000/1000000"), "{text}");
        assert_eq!(text.lines().count(), sample().len());
    }

    struct OnePack(Arc<File>);
    impl Packs for OnePack {
        fn open(&self, _: &Digest) -> io::Result<Arc<File>> {
            Ok(self.0.clone())
        }
    }

    #[test]
    fn large_contents_keep_their_padding() {
        let bytes: Vec<u8> = (0..5 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let packs = OnePack(Arc::new(file));
        let sizes = [0, 1, 511, 512, 513, BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER + 700, 4 * BUFFER + 3];
        let mut streams: [Vec<u8>; 2] = Default::default();
        for (packed, stream) in streams.iter_mut().enumerate() {
            let mut writer = Writer::new(stream, &packs);
            for (index, &len) in sizes.iter().enumerate() {
                let content = if packed == 1 {
                    let sha256 = Digest::of(&bytes[7..7 + len]);
                    Content::Packed { pack: Digest([0; 32]), offset: 7, len: len as u64, sha256 }
                } else {
                    Content::bytes(&bytes[7..7 + len])
                };
                writer
                    .entry(format!("f{index}").as_bytes(), &Node::new(Kind::File(content), 0o644, 0))
                    .unwrap();
            }
            writer.finish().unwrap();
        }
        assert!(streams[0] == streams[1]);
        for (entry, len) in read(&streams[0]).iter().zip(sizes) {
            assert!(entry.content == bytes[7..7 + len], "{len}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back(
            name in proptest::collection::vec(1u8..=255, 1..200),
            content in proptest::collection::vec(any::<u8>(), 0..1500),
            ids in any::<(u32, u32)>(), mtime in -1000i64..1 << 40, mode in 0u32..0o10000,
            xattrs in proptest::collection::btree_map("user\\.[a-z]{1,90}", proptest::collection::vec(any::<u8>(), 0..120), 0..3),
        ) {
            let path = crate::tree::normal(&name);
            prop_assume!(!path.is_empty());
            let mut node = Node::new(Kind::File(Content::bytes(content.clone())), mode, mtime).owned_by(ids.0, ids.1);
            node.xattrs = xattrs.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect::<BTreeMap<_, _>>();
            let mut writer = Writer::new(Vec::new(), &NoPacks);
            writer.entry(&path, &node).unwrap();
            let bytes = writer.finish().unwrap();
            prop_assert_eq!(bytes.len() % BLOCK, 0);
            let entries = read(&bytes);
            let [entry] = entries.as_slice() else { panic!("{} entries", entries.len()) };
            let number = |key: &str, plain: u64| {
                entry.pax.get(key).map_or(plain.into(), |v| std::str::from_utf8(v).unwrap().parse::<i128>().unwrap())
            };
            let read_path = entry.pax.get("path").cloned().unwrap_or_else(|| entry.header.path_bytes().into_owned());
            prop_assert_eq!(&read_path[2..], path.as_slice());
            prop_assert_eq!(number("uid", entry.header.uid().unwrap()), i128::from(ids.0));
            prop_assert_eq!(number("gid", entry.header.gid().unwrap()), i128::from(ids.1));
            prop_assert_eq!(number("mtime", entry.header.mtime().unwrap()), i128::from(mtime));
            prop_assert_eq!(entry.header.mode().unwrap(), mode);
            for (name, value) in &node.xattrs {
                let key = format!("SCHILY.xattr.{}", String::from_utf8_lossy(name));
                prop_assert_eq!(entry.pax.get(&key), Some(value));
            }
            prop_assert_eq!(&entry.content, &content);
        }
    }
}
