//! `.deb` files (deb(5)): an `ar` archive of `debian-binary`, a control tar and a data tar.
//!
//! Nothing of a file is believed: member sizes are checked against the file, paths must stay below the root, what is held in
//! memory is bounded. Contents are streamed; only the control part is kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::tree::TreePath;

/// Most bytes that a control part may unpack to; the largest of Debian are about 6 MB (lists of MD5 sums).
const MAX_CONTROL: u64 = 64 << 20;
/// Most bytes that a data part may unpack to.
const MAX_DATA: u64 = 64 << 30;
/// Memory that the xz decoder may use; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 512 << 20;
/// Most members that the outer archive may have.
const MAX_MEMBERS: usize = 64;
/// Longest path and longest part of one that Linux takes (`PATH_MAX`, `NAME_MAX`).
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;
/// Longest target of a symbolic link.
const MAX_TARGET: usize = 4095;

/// What is wrong with a `.deb`.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The outer archive is not one.
    #[error("it is no Debian package: {0}")]
    Format(String),
    /// A compression that is not read.
    #[error("its member `{0}` is compressed in a way that is not supported (xz, zstd, gzip and none are)")]
    Compression(String),
    /// An entry of a tar that must not be.
    #[error("its entry `{path}` is refused: {why}")]
    Entry {
        /// The entry's path as it stands in the archive.
        path: String,
        /// Why it is refused.
        why: String,
    },
    /// Its control part doesn't say what it must.
    #[error("its control file {0}")]
    Control(String),
    /// Reading or decompressing failed.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
}

/// How a member is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
}

/// Where a member lies in the file.
#[derive(Debug, Clone, Copy)]
struct Member {
    offset: u64,
    size: u64,
    compression: Compression,
}

/// A package file, opened; its parts are read on demand.
#[derive(Debug)]
pub struct Deb<R> {
    file: R,
    control: Member,
    data: Member,
}

/// A file of the control part, such as `postinst`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its time, in seconds since the epoch.
    pub mtime: i64,
}

/// The control part: files by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Control {
    /// All files but directories, by plain name.
    pub files: BTreeMap<String, ControlFile>,
}

/// What an entry of the data part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file of so many bytes.
    File(u64),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name of an entry that came before.
    HardLink(TreePath),
    /// A character device: major and minor number.
    CharDev(u32, u32),
    /// A block device: major and minor number.
    BlockDev(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An entry of the data part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the root; empty for the root itself.
    pub path: TreePath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits: at most `0o7777`.
    pub mode: u32,
    /// Owner by number; the name counts where the system knows it.
    pub uid: u32,
    /// Group by number.
    pub gid: u32,
    /// Owner by name; may be empty.
    pub user: String,
    /// Group by name; may be empty.
    pub group: String,
    /// Modification time in seconds since the epoch.
    pub mtime: i64,
}

impl Deb<BufReader<File>> {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// When it can't be read or is no package.
    pub fn open(path: &Path) -> Result<Self, DebError> {
        Deb::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read + Seek> Deb<R> {
    /// Reads the outer archive.
    ///
    /// # Errors
    /// When it is no package.
    pub fn new(mut file: R) -> Result<Self, DebError> {
        let wrong = |why: &str| DebError::Format(why.to_owned());
        let size = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let mut magic = [0; 8];
        file.read_exact(&mut magic).map_err(|_| wrong("it is too short"))?;
        if &magic != b"!<arch>\n" {
            return Err(wrong("it doesn't begin as an ar archive does"));
        }
        let (mut at, mut control, mut data) = (8, None, None);
        for index in 0..MAX_MEMBERS {
            if at >= size || data.is_some() {
                break;
            }
            let (name, length) = read_ar_header(&mut file, at)?;
            let offset = at + 60;
            if length > size - offset {
                let what = format!("member `{name}` claims {length} bytes, {} are there", size - offset);
                return Err(DebError::Format(what));
            }
            let member = |stem: &str| {
                Some(compression(&name, stem)?.map(|c| Member { offset, size: length, compression: c }))
            };
            match (index, name.as_str()) {
                (0, "debian-binary") => check_version(&mut file, length)?,
                (0, _) => return Err(wrong("its first member is not `debian-binary`")),
                (_, n) if n.starts_with('_') => {}
                _ if control.is_none() => {
                    let found = member("control.tar")
                        .ok_or_else(|| wrong("its second member is not `control.tar`"))?;
                    control = Some(found?);
                }
                _ => {
                    data = Some(
                        member("data.tar").ok_or_else(|| wrong("its third member is not `data.tar`"))??,
                    )
                }
            }
            at = offset + length + (length & 1);
        }
        let control = control.ok_or_else(|| wrong("it has no `control.tar`"))?;
        let data = data.ok_or_else(|| wrong("it has no `data.tar`"))?;
        Ok(Deb { file, control, data })
    }

    fn reader(&mut self, member: Member, limit: u64) -> Result<Box<dyn Read + '_>, DebError> {
        self.file.seek(SeekFrom::Start(member.offset))?;
        let raw = BufReader::with_capacity(128 << 10, (&mut self.file).take(member.size));
        let plain: Box<dyn Read + '_> = match member.compression {
            Compression::None => Box::new(raw),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(raw)?),
            Compression::Xz => {
                // The package's own SHA-256 has been checked, which says more than the checksums of its blocks.
                let flags = liblzma::stream::CONCATENATED | liblzma::stream::IGNORE_CHECK;
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)
                    .map_err(|e| DebError::Io(e.into()))?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(raw, stream))
            }
        };
        Ok(Box::new(Limited { inner: plain, left: limit }))
    }

    /// Reads the control part.
    ///
    /// # Errors
    /// When it is damaged, too large or has no `control`.
    pub fn control(&mut self) -> Result<Control, DebError> {
        let member = self.control;
        let mut control = Control::default();
        each_entry(self.reader(member, MAX_CONTROL)?, &mut |entry, reader| {
            if entry.kind == EntryKind::Dir {
                return Ok(());
            }
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            let refuse = |why: &str| Err(DebError::Entry { path: name.clone(), why: why.to_owned() });
            if !matches!(entry.kind, EntryKind::File(_)) {
                return refuse("only plain files belong into a control part");
            }
            if !is_control_name(&entry.path) {
                return refuse("it is no name of a control file");
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            control.files.insert(name, ControlFile { bytes, mode: entry.mode, mtime: entry.mtime });
            Ok(())
        })?;
        if !control.files.contains_key("control") {
            return Err(DebError::Control("is missing".to_owned()));
        }
        Ok(control)
    }

    /// Calls `each` for every entry of the data part, in the archive's order, with a reader of its bytes.
    ///
    /// # Errors
    /// When the part is damaged or has an entry that must not be, and whatever `each` answers.
    pub fn data<E: From<DebError>>(
        &mut self,
        each: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<(), E>,
    ) -> Result<(), E> {
        let member = self.data;
        each_entry(self.reader(member, MAX_DATA)?, each)
    }
}

/// Fails once more than `left` bytes come out of `inner`: a bomb, or damage.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("it unpacks to more than is allowed"))?;
        Ok(n)
    }
}

/// Reads a member's header (60 bytes: name, time, owner, group, mode, size, end mark).
fn read_ar_header(file: &mut (impl Read + Seek), at: u64) -> Result<(String, u64), DebError> {
    let mut header = [0; 60];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut header)
        .map_err(|_| DebError::Format(format!("the header at byte {at} is cut off")))?;
    let name = String::from_utf8_lossy(&header[..16]).trim_end().trim_end_matches('/').to_owned();
    let size = std::str::from_utf8(&header[48..58]).ok().map(str::trim_end);
    let size = size.filter(|s| s.bytes().all(|b| b.is_ascii_digit())).and_then(|s| s.parse().ok());
    match size {
        Some(size) if &header[58..] == b"`\n" => Ok((name, size)),
        _ => Err(DebError::Format(format!("the header at byte {at} is damaged"))),
    }
}

fn check_version(file: &mut impl Read, length: u64) -> Result<(), DebError> {
    let mut text = String::new();
    file.take(length.min(64)).read_to_string(&mut text)?;
    if text.starts_with("2.") {
        return Ok(());
    }
    Err(DebError::Format(format!("its format's version is `{}`; 2.x is read", text.trim().escape_debug())))
}

/// The compression that a member's name tells; `None` when it is another member.
fn compression(name: &str, stem: &str) -> Option<Result<Compression, DebError>> {
    let suffix = name.strip_prefix(stem)?;
    Some(match suffix {
        "" => Ok(Compression::None),
        ".gz" => Ok(Compression::Gzip),
        ".xz" => Ok(Compression::Xz),
        ".zst" => Ok(Compression::Zstd),
        _ => Err(DebError::Compression(name.to_owned())),
    })
}

/// Names of control files become names below /var/lib/dpkg/info: letters, digits, `-`, `+`, `.`, `_`, not `list`.
fn is_control_name(name: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-+._".contains(b);
    !name.is_empty() && name.len() <= 64 && name[0] != b'.' && name.iter().all(plain) && name != b"list"
}

fn each_entry<E: From<DebError>>(
    reader: impl Read,
    each: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(DebError::Io)? {
        let mut entry = entry.map_err(DebError::Io)?;
        let Some(parsed) = read_entry(&entry)? else { continue };
        each(parsed, &mut entry)?;
    }
    Ok(())
}

fn read_entry<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Option<Entry>, DebError> {
    let raw = entry.path_bytes().into_owned();
    let refuse =
        |why: &str| DebError::Entry { path: String::from_utf8_lossy(&raw).into_owned(), why: why.to_owned() };
    let header = entry.header();
    let number = |value: io::Result<u64>| value.ok().and_then(|v| u32::try_from(v).ok());
    let target = || entry.link_name_bytes().map(|t| t.into_owned()).filter(|t| !t.is_empty());
    let device =
        || -> Option<(u32, u32)> { Some((header.device_major().ok()??, header.device_minor().ok()??)) };
    use tar::EntryType as T;
    let kind = match header.entry_type() {
        T::Regular | T::Continuous | T::GNUSparse => EntryKind::File(entry.size()),
        T::Directory => EntryKind::Dir,
        T::Symlink => {
            let target = target().ok_or_else(|| refuse("the link has no target"))?;
            if target.len() > MAX_TARGET || target.contains(&0) {
                return Err(refuse("the link's target is no path"));
            }
            EntryKind::Symlink(target)
        }
        T::Link => {
            let target = target().ok_or_else(|| refuse("the hard link has no target"))?;
            EntryKind::HardLink(safe_path(&target).map_err(|why| refuse(&format!("its target {why}")))?)
        }
        T::Char => device()
            .map(|(a, b)| EntryKind::CharDev(a, b))
            .ok_or_else(|| refuse("the device has no number"))?,
        T::Block => device()
            .map(|(a, b)| EntryKind::BlockDev(a, b))
            .ok_or_else(|| refuse("the device has no number"))?,
        T::Fifo => EntryKind::Fifo,
        T::XGlobalHeader => return Ok(None),
        _ => return Err(refuse("it is of an unknown type")),
    };
    let path = safe_path(&raw).map_err(|why| refuse(&format!("its path {why}")))?;
    if path.is_empty() && kind != EntryKind::Dir {
        return Err(refuse("it would replace the root"));
    }
    let name = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let mtime = header.mtime().ok().and_then(|t| i64::try_from(t).ok());
    Ok(Some(Entry {
        path,
        kind,
        mode: header.mode().map_err(|_| refuse("its mode is no number"))? & 0o7777,
        uid: number(header.uid()).ok_or_else(|| refuse("its owner is no number"))?,
        gid: number(header.gid()).ok_or_else(|| refuse("its group is no number"))?,
        user: name(header.username_bytes()),
        group: name(header.groupname_bytes()),
        mtime: mtime.ok_or_else(|| refuse("its time is no number"))?,
    }))
}

/// Brings an entry's path to a tree's form: relative, and never out of the root.
fn safe_path(raw: &[u8]) -> Result<TreePath, &'static str> {
    if raw.contains(&0) {
        return Err("holds a zero byte");
    }
    if raw.contains(&b'\n') {
        return Err("holds a line break, which dpkg's lists can't");
    }
    let mut path = TreePath::with_capacity(raw.len());
    for part in raw.split(|&b| b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err("leads upwards"),
            _ if part.len() > MAX_NAME => return Err("has a part of more than 255 bytes"),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() > MAX_PATH { Err("is longer than 4095 bytes") } else { Ok(path) }
}

impl Control {
    /// The text of a control file; `None` when there is none. What is no UTF-8 is replaced.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        self.files.get(name).map(|f| String::from_utf8_lossy(&f.bytes).into_owned())
    }

    /// A field of the control file's only paragraph, continuation lines joined by `\n`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        let text = self.text("control")?;
        let mut value: Option<String> = None;
        for line in text.lines() {
            if line.starts_with([' ', '\t']) {
                if let Some(value) = &mut value {
                    value.push('\n');
                    value.push_str(line.trim());
                }
                continue;
            }
            if value.is_some() {
                break;
            }
            if let Some((key, rest)) = line.split_once(':')
                && key.eq_ignore_ascii_case(name)
            {
                value = Some(rest.trim().to_owned());
            }
        }
        value
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// When it isn't, or is empty.
    pub fn required(&self, name: &str) -> Result<String, DebError> {
        self.field(name)
            .filter(|v| !v.is_empty())
            .ok_or_else(|| DebError::Control(format!("has no field `{name}`")))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Cursor, Write};

    /// An entry for [`data_tar`]: path, kind as tar writes it, target, bytes.
    pub(crate) type Item<'a> = (&'a str, u8, &'a str, &'a [u8]);

    pub(crate) fn tar_of(items: &[Item<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, kind, target, bytes) in items {
            let mut header = tar::Header::new_ustar();
            // The crate's own setters refuse what a hostile archive would hold.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
            header.set_entry_type(tar::EntryType::new(*kind));
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_700_000_000);
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(bytes);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
        writeln!(out, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100_644, bytes.len()).unwrap();
        out.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
    }

    pub(crate) fn deb_of(control: (&str, Vec<u8>), data: (&str, Vec<u8>)) -> Vec<u8> {
        let mut out = b"!<arch>\n".to_vec();
        member(&mut out, "debian-binary", b"2.0\n");
        member(&mut out, control.0, &control.1);
        member(&mut out, data.0, &data.1);
        out
    }

    const CONTROL: &[u8] =
        b"Package: hello\nVersion: 1.0-1\nArchitecture: all\nDescription: greets\n and more\n";

    fn control_tar() -> Vec<u8> {
        tar_of(&[
            ("./", b'5', "", b""),
            ("./control", b'0', "", CONTROL),
            ("./postinst", b'0', "", b"#!/bin/sh\n"),
        ])
    }

    fn entries(deb: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, DebError> {
        let mut out = Vec::new();
        Deb::new(Cursor::new(deb))?.data(&mut |entry, reader: &mut dyn Read| -> Result<(), DebError> {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            out.push((entry, bytes));
            Ok(())
        })?;
        Ok(out)
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_compression_reads_the_same() {
        let data = tar_of(&[
            ("./", b'5', "", b""),
            ("./usr/", b'5', "", b""),
            ("./usr/hello", b'0', "", b"world"),
            ("./usr/link", b'2', "/etc/../hello", b""),
            ("./usr/hard", b'1', "./usr/hello", b""),
        ]);
        let plain = entries(&deb_of(("control.tar", control_tar()), ("data.tar", data.clone()))).unwrap();
        assert_eq!(plain.len(), 5);
        assert_eq!(plain[2].0.kind, EntryKind::File(5));
        assert_eq!(plain[2].1, b"world");
        assert_eq!(plain[3].0.kind, EntryKind::Symlink(b"/etc/../hello".to_vec()));
        assert_eq!(plain[4].0.kind, EntryKind::HardLink(b"usr/hello".to_vec()));
        let zstd = zstd::encode_all(data.as_slice(), 1).unwrap();
        for (suffix, bytes) in [(".xz", xz(&data)), (".gz", gzip(&data)), (".zst", zstd)] {
            let deb = deb_of(("control.tar.xz", xz(&control_tar())), (&format!("data.tar{suffix}"), bytes));
            assert_eq!(entries(&deb).unwrap(), plain, "{suffix}");
            let control = Deb::new(Cursor::new(&deb)).unwrap().control().unwrap();
            assert_eq!(control.required("Version").unwrap(), "1.0-1");
            assert_eq!(control.field("description").as_deref(), Some("greets\nand more"));
            assert!(control.files["postinst"].bytes.starts_with(b"#!"));
        }
    }

    #[test]
    fn entries_that_lead_out_are_refused() {
        for item in [
            ("../evil", b'0', "", b"".as_slice()),
            ("usr/../../evil", b'0', "", b""),
            ("usr/hard", b'1', "../../etc/passwd", b""),
            ("usr/nothing", b'2', "", b""),
            ("./", b'0', "", b""),
            ("two\nlines", b'0', "", b""),
            ("strange", b'9', "", b""),
        ] {
            let deb = deb_of(("control.tar", control_tar()), ("data.tar", tar_of(&[item])));
            assert!(matches!(entries(&deb), Err(DebError::Entry { .. })), "{item:?}");
        }
        let absolute =
            deb_of(("control.tar", control_tar()), ("data.tar", tar_of(&[("/etc/x", b'0', "", b"")])));
        assert_eq!(entries(&absolute).unwrap()[0].0.path, b"etc/x");
    }

    #[test]
    fn control_parts_hold_plain_files_alone() {
        for item in [
            ("../x", b'0', "", b"".as_slice()),
            ("sub/x", b'0', "", b""),
            ("list", b'0', "", b""),
            ("x", b'2', "y", b""),
        ] {
            let control = tar_of(&[("control", b'0', "", CONTROL), item]);
            let deb = deb_of(("control.tar", control), ("data.tar", tar_of(&[])));
            assert!(Deb::new(Cursor::new(deb)).unwrap().control().is_err(), "{item:?}");
        }
    }

    #[test]
    fn what_is_no_package_says_so() {
        let good = deb_of(("control.tar", control_tar()), ("data.tar", tar_of(&[])));
        let mut version = good.clone();
        version[68] = b'3';
        let mut size = good.clone();
        size[8 + 60 + 4 + 48..8 + 60 + 4 + 57].copy_from_slice(b"999999999");
        let foreign = deb_of(("control.tar", control_tar()), ("data.tar.lz", vec![]));
        for (bytes, words) in [
            (b"".as_slice(), "too short"),
            (b"not an archive", "ar archive"),
            (&good[..64], "cut off"),
            (&version, "version"),
            (&size, "claims"),
            (&foreign, "compressed"),
        ] {
            let error = Deb::new(Cursor::new(bytes)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damage_never_panics(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut: prop::sample::Index) {
            let data = tar_of(&[("./usr/", b'5', "", b""), ("./usr/hello", b'0', "", b"world")]);
            let mut deb = deb_of(("control.tar.xz", xz(&control_tar())), ("data.tar.gz", gzip(&data)));
            for (at, byte) in flips {
                let at = at.index(deb.len());
                deb[at] = byte;
            }
            deb.truncate(cut.index(deb.len()) + deb.len() / 2);
            let _ = entries(&deb);
            let _ = Deb::new(Cursor::new(&deb)).and_then(|mut d| d.control());
        }

        #[test]
        fn paths_stay_below_the_root(raw in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..40)) {
            if let Ok(path) = safe_path(&raw) {
                prop_assert!(path.split(|&b| b == b'/').all(|part| part != b".." && part != b"."));
                prop_assert!(path.first() != Some(&b'/') && path.last() != Some(&b'/'));
            }
        }
    }
}
