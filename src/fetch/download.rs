//! Files named by their digest: fetched in parallel, resumed, verified, and only then given their final name.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::digest::{Digest, Hasher};
use crate::fetch::http::{Client, HttpError};
use crate::host::fs::FileError;
use crate::host::interrupt::{self, Interrupted};

/// Tries at one URL that bring not a single byte, before the next one is asked.
const TRIES: u32 = 3;
/// Times that one URL may be cut off midway and taken up again.
const RESUMES: u32 = 20;
/// Why a server that couldn't be reached isn't asked again.
pub(super) const GIVEN_UP: &str = "not asked, as its server couldn't be reached before";
/// How often the caller hears of progress, and an interruption is looked for.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// A file to fetch.
#[derive(Debug, Clone)]
pub struct Download {
    /// SHA-256 of its bytes: decides, whatever the servers say.
    pub sha256: Digest,
    /// Its size in bytes, when known.
    pub size: Option<u64>,
    /// Where it may be had, in the order in which they are tried.
    pub urls: Vec<String>,
    /// Tried when all of `urls` fail and at least one of them says that the file is no longer there.
    pub snapshot: Vec<String>,
    /// Bytes that were fetched so far; kept when the download fails and taken up by the next one.
    pub partial: PathBuf,
    /// Its final name, on the same file system as `partial`. When it is there already, with the right size, nothing is
    /// done.
    pub target: PathBuf,
    /// What the user calls it.
    pub label: String,
}

impl Download {
    fn is_there(&self) -> bool {
        fs::metadata(&self.target).is_ok_and(|m| m.is_file() && self.size.is_none_or(|size| size == m.len()))
    }
}

/// How far all downloads together are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Files that are complete.
    pub files_done: u64,
    /// All files.
    pub files: u64,
    /// Bytes that are there.
    pub bytes_done: u64,
    /// Bytes of all files whose size is known.
    pub bytes: u64,
}

/// How to fetch.
#[derive(Clone)]
pub struct Options<'a> {
    /// How many at once.
    pub jobs: usize,
    /// Called on the calling thread, about ten times a second and at the end.
    pub progress: Option<&'a dyn Fn(Progress)>,
    /// The wait before a second try; doubled for each further one.
    pub backoff: Duration,
    /// The connections to use.
    pub client: Client,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { jobs: 4, progress: None, backoff: Duration::from_millis(300), client: Client::new() }
    }
}

/// One URL and why it gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// What was asked.
    pub url: String,
    /// What was wrong.
    pub reason: String,
    /// The server says that it doesn't have the file.
    pub gone: bool,
}

/// A file that couldn't be fetched from anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the user calls it.
    pub label: String,
    /// Every URL that was tried.
    pub attempts: Vec<Attempt>,
    /// Whether a snapshot archive was among them.
    pub snapshot: bool,
}

/// Why not all files are there. What was complete stays, and what was begun is taken up the next time.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A file of this host couldn't be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Some files couldn't be had.
    #[error("{}", describe(.0))]
    Unavailable(Vec<Failure>),
}

fn describe(failures: &[Failure]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Failure {
    /// What helps when servers don't have the file any more.
    fn gone(&self) -> &'static str {
        if self.label.contains("://") {
            return "\nnobody has it there: give another `url` in the profile, or put the file beside the profile";
        }
        "\nthe mirrors no longer have it: name a snapshot archive with KILN_SNAPSHOT=URL, or lock anew with `kiln lock`"
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "can't fetch {}:", self.label)?;
        if self.attempts.is_empty() {
            return write!(f, " no mirror of its archive is known: name one with --mirror ARCHIVE=URL");
        }
        for attempt in &self.attempts {
            write!(f, "\n  {}: {}", attempt.url, attempt.reason)?;
        }
        if !self.snapshot && self.attempts.iter().any(|a| a.gone) {
            f.write_str(self.gone())?;
        }
        Ok(())
    }
}

/// Fetches all of `downloads`. The first failure lets those that run finish and begins no other.
///
/// # Errors
/// See [`FetchError`].
pub fn download(mut downloads: Vec<Download>, options: &Options) -> Result<(), FetchError> {
    downloads.retain(|d| !d.is_there());
    if downloads.is_empty() {
        return Ok(());
    }
    // The largest first, so that no long one is left over at the end when the others are done.
    downloads.sort_by_key(|d| d.size);
    let total = Progress {
        files: downloads.len() as u64,
        bytes: downloads.iter().filter_map(|d| d.size).sum(),
        ..Progress::default()
    };
    let jobs = options.jobs.clamp(1, downloads.len());
    let shared = Arc::new(Shared {
        queue: Mutex::new(downloads),
        client: options.client.clone(),
        backoff: options.backoff,
        stop: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
    });
    let receiver = start(&shared, jobs);
    let report = |files_done| {
        let bytes_done = shared.bytes.load(Ordering::Relaxed);
        if let Some(progress) = options.progress {
            progress(Progress { files_done, bytes_done, ..total });
        }
    };
    let (mut files_done, mut failures) = (0, Vec::new());
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(Ok(())) => files_done += 1,
            Ok(Err(error)) => {
                shared.stop_queue();
                failures.push(error);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Err(interrupted) = interrupt::check() {
            shared.stop.store(true, Ordering::Relaxed);
            return Err(interrupted.into());
        }
        report(files_done);
    }
    report(files_done);
    outcome(failures)
}

/// Starts the workers, which send what became of each file. They are not scoped: one that waits for a silent server must
/// not hold up the user's Ctrl-C.
fn start(shared: &Arc<Shared>, jobs: usize) -> mpsc::Receiver<Result<(), FetchError>> {
    let (sender, receiver) = mpsc::channel();
    for _ in 0..jobs {
        let (shared, sender) = (Arc::clone(shared), sender.clone());
        std::thread::spawn(move || shared.work(&sender));
    }
    receiver
}

/// Of several errors the one to tell: a full disk explains more than what it caused.
fn outcome(errors: Vec<FetchError>) -> Result<(), FetchError> {
    let mut failures = Vec::new();
    for error in errors {
        match error {
            FetchError::Unavailable(mut more) => failures.append(&mut more),
            other => return Err(other),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(FetchError::Unavailable(failures)) }
}

/// What the workers share.
struct Shared {
    queue: Mutex<Vec<Download>>,
    client: Client,
    backoff: Duration,
    stop: AtomicBool,
    bytes: AtomicU64,
}

/// How a URL failed.
enum Trouble {
    Attempt(Attempt),
    Stop(FetchError),
}

impl From<FileError> for Trouble {
    fn from(e: FileError) -> Trouble {
        Trouble::Stop(e.into())
    }
}

impl Shared {
    fn work(&self, sender: &mpsc::Sender<Result<(), FetchError>>) {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(item) = next else { return };
            if sender.send(self.fetch(&item)).is_err() {
                return;
            }
        }
    }

    fn stop_queue(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn check(&self) -> Result<(), Trouble> {
        let stopped = self.stop.load(Ordering::Relaxed);
        if stopped { Err(Trouble::Stop(Interrupted.into())) } else { Ok(()) }
    }

    /// One file, from wherever it is to be had.
    fn fetch(&self, item: &Download) -> Result<(), FetchError> {
        let mut attempts = Vec::new();
        let Some(mut partial) = Partial::open(item, self)? else { return Ok(()) };
        if partial.judge(item).is_ok() {
            return partial.finish(item);
        }
        for (index, url) in item.urls.iter().chain(&item.snapshot).enumerate() {
            if index == item.urls.len() && !attempts.iter().any(|a: &Attempt| a.gone) {
                break;
            }
            match self.try_url(item, &mut partial, url) {
                Ok(()) => return partial.finish(item),
                Err(Trouble::Stop(error)) => return Err(error),
                Err(Trouble::Attempt(attempt)) => attempts.push(attempt),
            }
        }
        partial.drop_empty(item);
        let failure = Failure { label: item.label.clone(), attempts, snapshot: !item.snapshot.is_empty() };
        Err(FetchError::Unavailable(vec![failure]))
    }

    /// Brings the whole file from one URL and verifies it.
    fn try_url(&self, item: &Download, partial: &mut Partial, url: &str) -> Result<(), Trouble> {
        let failed =
            |reason: String, gone: bool| Trouble::Attempt(Attempt { url: url.to_owned(), reason, gone });
        if self.client.is_unreachable(url) {
            return Err(failed(GIVEN_UP.to_owned(), false));
        }
        let (mut idle, mut resumes, mut again) = (0, 0, false);
        loop {
            self.check()?;
            let before = partial.len;
            match self.stream(item, partial, url) {
                Ok(began) => {
                    let Err(found) = partial.judge(item) else { return Ok(()) };
                    partial.clear(self)?;
                    // What was there before may have been wrong, or the file changed on the server in between.
                    if began == 0 || again {
                        let wanted = item.sha256;
                        return Err(failed(
                            format!("serves other bytes: SHA-256 {found} instead of {wanted}"),
                            false,
                        ));
                    }
                    again = true;
                }
                Err(Stream::Stop(error)) => return Err(Trouble::Stop(error)),
                Err(Stream::Http(HttpError::Range)) if before > 0 => partial.clear(self)?,
                Err(Stream::Http(error)) if !error.may_pass() => {
                    return Err(failed(error.to_string(), matches!(error, HttpError::Gone(_))));
                }
                Err(Stream::Http(error)) => {
                    let moved = partial.len > before;
                    idle = if moved { 0 } else { idle + 1 };
                    resumes += 1;
                    if idle >= TRIES || resumes >= RESUMES {
                        if matches!(error, HttpError::Unreachable(_)) {
                            self.client.mark_unreachable(url);
                        }
                        return Err(failed(error.to_string(), false));
                    }
                    self.wait(idle)?;
                }
            }
        }
    }

    /// Appends what `url` gives to the partial file. Answers at which offset it began.
    fn stream(&self, item: &Download, partial: &mut Partial, url: &str) -> Result<u64, Stream> {
        let mut opened = self.client.open(url, partial.len)?;
        if opened.start != partial.len {
            if opened.start != 0 {
                return Err(
                    HttpError::Refused("answered with another range than asked for".to_owned()).into()
                );
            }
            partial.clear(self)?;
        }
        if let (Some(size), Some(total)) = (item.size, opened.total)
            && size != total
        {
            return Err(HttpError::Refused(format!("has {total} bytes instead of {size}")).into());
        }
        let began = partial.len;
        let expected = item.size.or(opened.total);
        let mut buffer = vec![0; 128 << 10];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Stream::Stop(Interrupted.into()));
            }
            let n = match opened.reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    return Err(
                        HttpError::Transient(format!("cut off after {} bytes: {e}", partial.len)).into()
                    );
                }
            };
            if expected.is_some_and(|e| partial.len + n as u64 > e) {
                partial.clear(self)?;
                return Err(HttpError::Refused(format!("longer than {} bytes", expected.unwrap_or(0))).into());
            }
            partial.append(&buffer[..n], self)?;
        }
        match expected {
            Some(size) if partial.len < size => {
                Err(HttpError::Transient(format!("cut off after {} of {size} bytes", partial.len)).into())
            }
            _ => Ok(began),
        }
    }

    fn wait(&self, idle: u32) -> Result<(), Trouble> {
        let mut left = self.backoff * 2_u32.saturating_pow(idle.saturating_sub(1)).min(64);
        while !left.is_zero() {
            self.check()?;
            let step = left.min(TICK);
            std::thread::sleep(step);
            left -= step;
        }
        Ok(())
    }
}

/// How streaming ended early.
enum Stream {
    Http(HttpError),
    Stop(FetchError),
}

impl From<HttpError> for Stream {
    fn from(e: HttpError) -> Stream {
        Stream::Http(e)
    }
}

impl From<FileError> for Stream {
    fn from(e: FileError) -> Stream {
        Stream::Stop(e.into())
    }
}

/// The bytes that are there so far, and their running digest. Locked against other processes that want the same file.
struct Partial {
    file: File,
    path: PathBuf,
    len: u64,
    hasher: Hasher,
}

impl Partial {
    /// Opens and locks the partial file, and takes in what it holds; `None` when another process has brought the whole
    /// file in the meantime.
    fn open(item: &Download, shared: &Shared) -> Result<Option<Partial>, FetchError> {
        let path = &item.partial;
        for folder in [path.parent(), item.target.parent()].into_iter().flatten() {
            fs::create_dir_all(folder).map_err(FileError::at("can't make", folder))?;
        }
        loop {
            let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
            let file = open.map_err(FileError::at("can't write", path))?;
            while file.try_lock().is_err() {
                if shared.stop.load(Ordering::Relaxed) {
                    return Err(Interrupted.into());
                }
                std::thread::sleep(TICK);
            }
            if item.is_there() {
                return Ok(None);
            }
            // Whoever held the lock may have renamed or removed the file that was opened.
            if !is_same(&file, path) {
                continue;
            }
            let (digest, len) = hash_all(&file).map_err(FileError::at("can't read", path))?;
            let partial = Partial { file, path: path.clone(), len, hasher: digest };
            shared.bytes.fetch_add(len, Ordering::Relaxed);
            return Ok(Some(partial));
        }
    }

    fn append(&mut self, bytes: &[u8], shared: &Shared) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(FileError::at("can't write", &self.path))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Throws away what is there.
    fn clear(&mut self, shared: &Shared) -> Result<(), FileError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(FileError::at("can't empty", &self.path))?;
        self.hasher = Hasher::new();
        shared.bytes.fetch_sub(std::mem::take(&mut self.len), Ordering::Relaxed);
        Ok(())
    }

    /// Whether the file is complete and right; if not, its digest.
    fn judge(&self, item: &Download) -> Result<(), Digest> {
        let found = self.hasher.clone().finish();
        let right = item.size.is_none_or(|size| size == self.len) && found == item.sha256;
        if right { Ok(()) } else { Err(found) }
    }

    /// Gives the file its final name, after it has reached the disk.
    fn finish(self, item: &Download) -> Result<(), FetchError> {
        self.file.sync_data().map_err(FileError::at("can't write", &self.path))?;
        fs::rename(&self.path, &item.target).map_err(FileError::at("can't make", &item.target))?;
        Ok(())
    }

    /// Leaves no empty file behind after a failure.
    fn drop_empty(self, item: &Download) {
        if self.len == 0 {
            // Best effort: an empty partial file does no harm.
            let _ = fs::remove_file(&item.partial);
        }
    }
}

fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn hash_all(mut file: &File) -> io::Result<(Hasher, u64)> {
    let mut hasher = Hasher::new();
    let len = io::copy(&mut file, &mut hasher)?;
    Ok((hasher, len))
}
