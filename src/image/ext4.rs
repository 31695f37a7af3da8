//! The pieces of an ext4 file system at its place on the disk.

use super::{ImageError, WriteJob};
use crate::format::ext4::Ext4;
use crate::format::piece::Piece;
use crate::layout::{Partition, Placed, place};
use crate::tree::{TreePath, normal};

/// What the tree holds below `mount` (nothing when it is mounted nowhere), in the order in which it lies on the disk.
pub(super) fn placed<'a>(job: &WriteJob<'a>, mount: Option<&str>) -> Vec<Placed<'a>> {
    let others: Vec<TreePath> = job.layout.mounts().map(|m| normal(m.as_bytes())).collect();
    mount.map(|mount| place(job.tree, &normal(mount.as_bytes()), &others, job.late)).unwrap_or_default()
}

/// The file system with these nodes.
pub(super) fn pieces<'a>(
    job: &WriteJob<'_>,
    partition: &Partition,
    fs: &'a Ext4,
    nodes: &'a [Placed<'a>],
) -> Result<Vec<Piece<'a>>, ImageError> {
    let nodes = nodes.iter().map(|placed| (placed.path, placed.node.as_ref()));
    let pieces = fs.fill(partition.size(), job.epoch, nodes);
    let mut pieces =
        pieces.map_err(|source| ImageError::Ext4 { partition: partition.name.clone(), source })?;
    for piece in &mut pieces {
        piece.at += partition.offset().0;
    }
    Ok(pieces)
}
