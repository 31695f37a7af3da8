//! Fills an ext4 file system at its place on the disk.

use std::fs;
use std::io::Write;

use super::boot_files::run;
use super::{Disk, ImageError, WriteJob};
use crate::format::ext4::{Attribute, Ext4, debugfs_script, size_arg, taken_from_archive};
use crate::format::tar;
use crate::host::fs::FileError;
use crate::host::tools;
use crate::layout::{Partition, Placed, place};
use crate::tree::{Kind, TreePath, normal};

/// Makes the file system with what the tree holds below `mount` (nothing when it is mounted nowhere).
pub(super) fn write(
    job: &WriteJob<'_>,
    disk: &Disk<'_>,
    partition: &Partition,
    fs: &Ext4,
    mount: Option<&str>,
) -> Result<(), ImageError> {
    let others: Vec<TreePath> = job.layout.mounts().map(|m| normal(m.as_bytes())).collect();
    let nodes =
        mount.map(|mount| place(job.tree, &normal(mount.as_bytes()), &others, job.late)).unwrap_or_default();
    let mut command = tools::command(job.tools, "mke2fs")?;
    command.args(fs.mke2fs_args(partition.offset())).arg(&disk.path).arg(size_arg(partition.size()));
    command.env("MKE2FS_CONFIG", "/dev/null").env("SOURCE_DATE_EPOCH", job.epoch.to_string());
    run("mke2fs", command, |pipe| {
        stream(job, &nodes, pipe)
            .map_err(|source| ImageError::Tree { partition: partition.name.clone(), source })
    })?;
    restore_attributes(job, disk, partition, &nodes)
}

fn stream(job: &WriteJob<'_>, nodes: &[Placed<'_>], pipe: &mut dyn Write) -> std::io::Result<()> {
    let mut writer = tar::Writer::new(pipe, job.packs, taken_from_archive);
    for placed in nodes {
        if crate::host::interrupt::check().is_err() {
            return Err(std::io::Error::other("interrupted"));
        }
        writer.entry(placed.path, &placed.node)?;
    }
    writer.finish().map(drop)
}

/// Sets the attributes that mke2fs drops from an archive: access control lists, `user.*`, SELinux labels.
fn restore_attributes(
    job: &WriteJob<'_>,
    disk: &Disk<'_>,
    partition: &Partition,
    nodes: &[Placed<'_>],
) -> Result<(), ImageError> {
    let attributes: Vec<Attribute<'_>> = nodes
        .iter()
        .filter(|placed| !matches!(placed.node.kind, Kind::HardLink(_)))
        .flat_map(|placed| {
            let dropped = placed.node.xattrs.iter().filter(|(name, _)| !taken_from_archive(name));
            dropped.map(|(name, value)| Attribute { path: placed.path, name, value })
        })
        .collect();
    if attributes.is_empty() {
        return Ok(());
    }
    let scratch = tempfile::tempdir().map_err(FileError::at("can't make", &std::env::temp_dir()))?;
    for (index, attribute) in attributes.iter().enumerate() {
        let path = scratch.path().join(index.to_string());
        fs::write(&path, attribute.value).map_err(FileError::at("can't write", &path))?;
    }
    // debugfs runs in that folder, so that its own name needs no quoting.
    let Some(script) = debugfs_script(&attributes, ".") else {
        let newline = |a: &&Attribute<'_>| a.path.contains(&b'\n') || a.name.contains(&b'\n');
        let path = attributes.iter().find(newline).map(|a| a.path).unwrap_or_default();
        return Err(ImageError::Newline(format!("/{}", String::from_utf8_lossy(path))));
    };
    let script_path = scratch.path().join("script");
    fs::write(&script_path, script).map_err(FileError::at("can't write", &script_path))?;
    let device = disk.path.canonicalize().map_err(FileError::at("can't find", &disk.path))?;
    let mut device = device.into_os_string();
    device.push(format!("?offset={}", partition.offset().0));
    let mut command = tools::command(
        &job.tools.canonicalize().map_err(FileError::at("can't find", job.tools))?,
        "debugfs",
    )?;
    command.arg("-w").arg("-f").arg("script").arg(device).current_dir(scratch.path());
    command.env("SOURCE_DATE_EPOCH", job.epoch.to_string());
    run("debugfs", command, |_| Ok(()))
}
