//! What lies where on a disk, before it is written: pieces that don't overlap.

use crate::tree::Content;

/// Bytes at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where the first of them lies.
    pub at: u64,
    /// The bytes.
    pub data: Data<'a>,
}

/// Where a piece's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data<'a> {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file of a tree, which is read when it is written.
    File {
        /// The file's bytes.
        content: &'a Content,
        /// Which of them is the first.
        offset: u64,
        /// How many.
        len: u64,
    },
}

impl Piece<'_> {
    /// A piece that holds its bytes itself.
    #[must_use]
    pub fn bytes(at: u64, bytes: Vec<u8>) -> Self {
        Piece { at, data: Data::Bytes(bytes) }
    }

    /// Where the piece ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at.saturating_add(match &self.data {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::File { len, .. } => *len,
        })
    }
}
