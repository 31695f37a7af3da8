//! The disk as the checks read it: by pages, with a limit on how much is read in all.
//!
//! The readers of file systems own what they read from, while the disk is only lent. So the checks run on a thread of
//! their own, which asks the lender for each page. Corrupt structures that lead in circles meet the limit, and a reader
//! that panics ends its thread, not the program.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ext4_view::Ext4Read;

use crate::host::fs::sought;
use crate::units::KIB;

/// What is read at once.
const PAGE: u64 = 64 * KIB;
/// Pages that are kept; further ones take the place of all of them.
const KEPT: usize = 512;
/// Pages that are read in all: 256 MiB. The images of all ready-made profiles take less than a hundredth of it.
const LIMIT: u64 = 4096;

/// A page, or why it could not be read.
type Page = io::Result<Rc<[u8]>>;

/// The disk, seen from the thread that checks.
#[derive(Clone)]
pub(super) struct Disk {
    client: Rc<RefCell<Client>>,
    size: u64,
}

struct Client {
    ask: Sender<u64>,
    answers: Receiver<io::Result<Vec<u8>>>,
    pages: HashMap<u64, Rc<[u8]>>,
    read: u64,
}

/// A part of the disk, as a file is read.
#[derive(Clone)]
pub(super) struct Slice {
    disk: Disk,
    start: u64,
    size: u64,
    position: u64,
}

/// Runs `check` on the disk; `None` when it panicked, or when the disk can't even tell its size.
pub(super) fn with_disk<T: Send>(
    disk: &mut (impl Read + Seek),
    check: impl FnOnce(Disk) -> T + Send,
) -> Option<T> {
    let size = disk.seek(SeekFrom::End(0)).ok()?;
    let (ask, asked) = channel();
    let (answer, answers) = channel();
    thread::scope(|scope| {
        let checking = scope.spawn(move || {
            let client = Client { ask, answers, pages: HashMap::new(), read: 0 };
            check(Disk { client: Rc::new(RefCell::new(client)), size })
        });
        // Ends when the checking thread drops its end.
        while let Ok(page) = asked.recv() {
            if answer.send(read_page(disk, page, size)).is_err() {
                break;
            }
        }
        checking.join().ok()
    })
}

fn read_page(disk: &mut (impl Read + Seek), page: u64, size: u64) -> io::Result<Vec<u8>> {
    let at = page * PAGE;
    let mut bytes = vec![0; PAGE.min(size.saturating_sub(at)) as usize];
    disk.seek(SeekFrom::Start(at))?;
    disk.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Client {
    fn page(&mut self, page: u64) -> Page {
        if let Some(bytes) = self.pages.get(&page) {
            return Ok(bytes.clone());
        }
        if self.read >= LIMIT {
            return Err(io::Error::other("its structures lead in circles: too much was read"));
        }
        self.read += 1;
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.ask.send(page).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let bytes: Rc<[u8]> = self.answers.recv().map_err(gone)??.into();
        if self.pages.len() >= KEPT {
            self.pages.clear();
        }
        self.pages.insert(page, bytes.clone());
        Ok(bytes)
    }
}

impl Disk {
    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `to` from the bytes at `at`.
    pub(super) fn read_at(&self, mut at: u64, mut to: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(to.len() as u64).filter(|&end| end <= self.size);
        end.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the disk ends before that"))?;
        while !to.is_empty() {
            let bytes = self.client.borrow_mut().page(at / PAGE)?;
            let from = bytes.get((at % PAGE) as usize..).filter(|rest| !rest.is_empty());
            let from = from.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            let count = from.len().min(to.len());
            to[..count].copy_from_slice(&from[..count]);
            to = &mut to[count..];
            at += count as u64;
        }
        Ok(())
    }

    /// Bytes at `at`, of which there must be `count`.
    pub(super) fn bytes(&self, at: u64, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.read_at(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The part of `size` bytes from `start` on, or what of it the disk has.
    pub(super) fn slice(&self, start: u64, size: u64) -> Slice {
        let size = size.min(self.size.saturating_sub(start));
        Slice { disk: self.clone(), start, size, position: 0 }
    }
}

impl Slice {
    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes at `at`; `None` when they can't be read or the part ends before.
    pub(super) fn bytes(&self, at: u64, count: usize) -> Option<Vec<u8>> {
        at.checked_add(count as u64).filter(|&end| end <= self.size)?;
        self.disk.bytes(self.start + at, count).ok()
    }
}

impl Ext4Read for Slice {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let end = start_byte.checked_add(dst.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err("the partition ends before that".into());
        }
        Ok(self.disk.read_at(self.start + start_byte, dst)?)
    }
}

impl Read for Slice {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.size.saturating_sub(self.position).min(to.len() as u64) as usize;
        self.disk.read_at(self.start + self.position, &mut to[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Slice {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = sought(self.position, self.size, to)?;
        Ok(self.position)
    }
}
