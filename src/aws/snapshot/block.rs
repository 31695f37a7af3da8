//! Reading blocks of the image, and hashing, beside the tasks that send.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_smithy_types::body::SdkBody;

use super::SnapshotError;
use crate::artifact::BLOCK;
use crate::digest::Digest;
use crate::host::fs::FileError;

/// The image that is uploaded.
#[derive(Debug, Clone)]
pub struct Image {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    zeroes: Arc<SdkBody>,
}

impl Image {
    /// Opens a raw image.
    ///
    /// # Errors
    /// When that fails.
    pub fn open(path: &Path) -> Result<Image, FileError> {
        let file = File::open(path).map_err(FileError::at("can't open", path))?;
        let size = file.metadata().map_err(FileError::at("can't read", path))?.len();
        let zeroes = Arc::new(SdkBody::from(vec![0; BLOCK as usize]));
        Ok(Image { file: Arc::new(file), path: path.to_owned(), size, zeroes })
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A block as a request's body: the one whose digest is `digest`, or zeroes.
    pub(super) async fn block(&self, index: u32, digest: Option<Digest>) -> Result<SdkBody, SnapshotError> {
        let Some(digest) = digest else { return Ok(copy(&self.zeroes)) };
        let at = u64::from(index) * BLOCK;
        let (bytes, found) = self.hashed(at, BLOCK).await?;
        if found == digest { Ok(SdkBody::from(bytes)) } else { Err(SnapshotError::Changed { index }) }
    }

    /// `count` bytes at `at` and their digest; behind the image's end there are zeroes.
    pub(super) async fn hashed(&self, at: u64, count: u64) -> Result<(Vec<u8>, Digest), SnapshotError> {
        let (file, filled) = (self.file.clone(), self.size.saturating_sub(at).min(count) as usize);
        let read = move || {
            let mut bytes = vec![0; count as usize];
            file.read_exact_at(&mut bytes[..filled], at)?;
            let digest = Digest::of(&bytes);
            Ok((bytes, digest))
        };
        let result = beside(read).await;
        let result = result.unwrap_or_else(|| Err(io::Error::other("the thread that read it was lost")));
        Ok(result.map_err(FileError::at("can't read", &self.path))?)
    }
}

/// Another body of the same bytes, which are not copied.
pub(super) fn copy(body: &SdkBody) -> SdkBody {
    // Only streams can't be copied.
    body.try_clone().unwrap_or_else(SdkBody::empty)
}

/// Computes on a thread of those that hash; `None` when that was lost.
pub(super) async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    rayon::spawn(move || drop(sender.send(work())));
    receiver.await.ok()
}
