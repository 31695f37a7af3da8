//! The transport of Debian archives over mirrors, with the indexes kept by digest.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};

use crate::digest::Digest;
use crate::fetch::download::{Download, FetchError, GIVEN_UP, Options, TICK, download};
use crate::fetch::http::HttpError;
use crate::fetch::mirrors::Mirrors;
use crate::host::fs::FileError;
use crate::host::interrupt;
use crate::source::debian::archive::{Accept, Refusal, SignedFiles, Transport, TransportError, Wanted};

/// Largest signed file that is read. Debian's have 150 kB.
const LARGEST_RELEASE: u64 = 16 << 20;
/// Tries at one mirror.
const TRIES: u32 = 3;

/// Brings archives' files from mirrors. Release files are only held in memory; indexes are kept under the path that
/// `kept` gives for their digest, and taken from there the next time.
pub struct Remote<'a> {
    /// Where the archives are.
    pub mirrors: &'a Mirrors,
    /// The final path of a file by its digest.
    pub kept: &'a dyn Fn(&Digest) -> PathBuf,
    /// The path under which it is fetched; on the same file system.
    pub partial: &'a dyn Fn(&Digest) -> PathBuf,
    /// How to fetch.
    pub options: Options<'a>,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> TransportError {
    TransportError::Other(Box::new(error))
}

impl Remote<'_> {
    /// A small file, tried again when the failure may pass.
    fn get(&self, url: &str) -> Result<Result<Vec<u8>, HttpError>, TransportError> {
        let client = &self.options.client;
        if client.is_unreachable(url) {
            return Ok(Err(HttpError::Unreachable(GIVEN_UP.to_owned())));
        }
        let mut wait = self.options.backoff;
        for _ in 1..TRIES {
            match self.get_once(url)? {
                Err(e) if e.may_pass() => std::thread::sleep(wait),
                done => return Ok(done),
            }
            wait *= 2;
        }
        let last = self.get_once(url)?;
        if matches!(last, Err(HttpError::Unreachable(_))) {
            client.mark_unreachable(url);
        }
        Ok(last)
    }

    /// Asks on a thread of its own, so that a silent server doesn't hold up the user's Ctrl-C.
    fn get_once(&self, url: &str) -> Result<Result<Vec<u8>, HttpError>, TransportError> {
        let (sender, receiver) = mpsc::channel();
        let (client, url) = (self.options.client.clone(), url.to_owned());
        std::thread::spawn(move || sender.send(client.get(&url, LARGEST_RELEASE)));
        loop {
            interrupt::check().map_err(other)?;
            match receiver.recv_timeout(TICK) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Err(HttpError::Refused("the request was dropped".to_owned())));
                }
            }
        }
    }

    /// `InRelease` of one mirror, or else `Release` and `Release.gpg`; or the address that failed.
    fn signed_files(&self, folder: &str) -> Result<Result<SignedFiles, Refusal>, TransportError> {
        let refusal =
            |name: &str, e: HttpError| Refusal { url: format!("{folder}/{name}"), reason: e.to_string() };
        let inline = match self.get(&format!("{folder}/InRelease"))? {
            Ok(bytes) => return Ok(Ok(SignedFiles::Inline(bytes))),
            Err(e) => e,
        };
        if !matches!(inline, HttpError::Gone(_)) {
            return Ok(Err(refusal("InRelease", inline)));
        }
        let Ok(release) = self.get(&format!("{folder}/Release"))? else {
            return Ok(Err(refusal("InRelease", inline)));
        };
        Ok(match self.get(&format!("{folder}/Release.gpg"))? {
            Ok(signature) => Ok(SignedFiles::Detached { release, signature }),
            Err(e) => Err(refusal("Release.gpg", e)),
        })
    }
}

impl Transport for Remote<'_> {
    fn signed(&self, archive: &str, folder: &str, accept: Accept) -> Result<(), TransportError> {
        let mut refusals = Vec::new();
        for base in self.mirrors.urls(archive, folder) {
            let base = base.trim_end_matches('/');
            match self.signed_files(base)? {
                Err(refusal) => refusals.push(refusal),
                Ok(files) => match accept(&files) {
                    Ok(()) => return Ok(()),
                    Err(e) => {
                        let name =
                            if matches!(files, SignedFiles::Inline(_)) { "InRelease" } else { "Release" };
                        refusals.push(Refusal { url: format!("{base}/{name}"), reason: e.to_string() });
                    }
                },
            }
        }
        Err(TransportError::Unavailable(refusals))
    }

    fn listed(&self, wanted: &[Wanted]) -> Result<Vec<Vec<u8>>, TransportError> {
        let mut bytes: Vec<Option<Vec<u8>>> = Vec::new();
        for want in wanted {
            bytes.push(self.read_kept(&want.listed.sha256)?);
        }
        let mut downloads: Vec<Download> = Vec::new();
        for (want, _) in wanted.iter().zip(&bytes).filter(|(_, bytes)| bytes.is_none()) {
            if downloads.iter().all(|d| d.sha256 != want.listed.sha256) {
                downloads.push(self.download_of(want));
            }
        }
        download(downloads, &self.options).map_err(from_fetch)?;
        let read = |(want, bytes): (&Wanted, Option<Vec<u8>>)| match bytes {
            Some(bytes) => Ok(bytes),
            None => {
                let path = (self.kept)(&want.listed.sha256);
                fs::read(&path).map_err(|e| other(FileError::at("can't read", &path)(e)))
            }
        };
        wanted.iter().zip(bytes).map(read).collect()
    }
}

impl Remote<'_> {
    /// A kept file, if it is there and undamaged. A damaged one is removed.
    fn read_kept(&self, digest: &Digest) -> Result<Option<Vec<u8>>, TransportError> {
        let path = (self.kept)(digest);
        match fs::read(&path) {
            Ok(bytes) if Digest::of(&bytes) == *digest => Ok(Some(bytes)),
            Ok(_) => {
                fs::remove_file(&path)
                    .map_err(|e| other(FileError::at("can't remove the damaged", &path)(e)))?;
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(other(FileError::at("can't read", &path)(e))),
        }
    }

    fn download_of(&self, want: &Wanted) -> Download {
        let bases = self.mirrors.bases(&want.archive);
        let urls = bases.iter().flat_map(|base| want.paths.iter().map(move |path| format!("{base}/{path}")));
        Download {
            sha256: want.listed.sha256,
            size: Some(want.listed.size),
            urls: urls.collect(),
            snapshot: Vec::new(),
            partial: (self.partial)(&want.listed.sha256),
            target: (self.kept)(&want.listed.sha256),
            label: want.label.clone(),
        }
    }
}

fn from_fetch(error: FetchError) -> TransportError {
    match error {
        FetchError::Unavailable(failures) => {
            let attempts = failures.into_iter().flat_map(|f| f.attempts);
            TransportError::Unavailable(attempts.map(|a| Refusal { url: a.url, reason: a.reason }).collect())
        }
        error => other(error),
    }
}
