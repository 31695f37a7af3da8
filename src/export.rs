//! Raw images into other formats: qcow2.
use std::path::Path;
/// x
#[derive(Debug, Clone, Copy, Default)]
pub enum Compression {
    /// x
    #[default]
    None,
}
/// x
#[derive(Debug, thiserror::Error)]
#[error("qcow2 is not there yet")]
pub struct ExportError;
/// x
/// # Errors
/// x
pub fn qcow2(_: &Path, _: &Path, _: Compression) -> Result<(), ExportError> {
    Err(ExportError)
}
