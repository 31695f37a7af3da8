//! Adds a generation to a disk of the store layout that lies in a file.
//!
//! What changes is decided by the code that decides it on a machine ([`kiln_guest::switch`]), in two folders that stand for the
//! two partitions; then the disk's copy is brought to the same state, and takes the disk's place when it is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_guest::generations::{Roots, Running};
use kiln_guest::steps::Steps;
use kiln_guest::switch::{SwitchError, Switched, Target, switch};
use nix::fcntl::{FallocateFlags, fallocate};
use uuid::Uuid;

use super::boot_files::run;
use super::{ESP_LABEL, ImageError};
use crate::arch::Arch;
use crate::format::fat::{Volume, read};
use crate::format::gpt::{self, Entry};
use crate::host::fs::{FileError, copy_range, copy_sparse, folder_of};
use crate::host::part::Part;
use crate::host::tools;
use crate::units::{Bytes, SECTOR};

/// Where the systems lie on their partition.
const STORE: &str = "store";
/// The largest file of an EFI system partition that is read.
const LARGEST: u64 = 1 << 30;
/// Folders within folders of an EFI system partition that are followed.
const DEPTH: usize = 16;

/// What is added, and to what.
#[derive(Clone, Copy)]
pub struct AddJob<'a> {
    /// The disk: a raw file.
    pub disk: &'a Path,
    /// The generation file.
    pub file: &'a Path,
    /// GUID of the partition that holds the systems.
    pub partition: Uuid,
    /// The machine's architecture.
    pub arch: Arch,
    /// How many generations the disk keeps.
    pub keep: usize,
    /// The time stamped on what is written, in seconds since 1970.
    pub epoch: i64,
    /// The tools tree.
    pub tools: &'a Path,
}

/// Why a generation can't be added to a disk.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The disk is none of the store layout.
    #[error("{} is no disk of the store layout: {why}", path.display())]
    NoStore {
        /// The disk.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// The generation doesn't fit the disk.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// A file or a tool.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl From<FileError> for AddError {
    fn from(e: FileError) -> AddError {
        AddError::Image(e.into())
    }
}

/// Adds the generation; the disk is replaced when all is written, and as it was before otherwise.
///
/// # Errors
/// [`AddError`].
pub fn add(job: &AddJob<'_>) -> Result<Switched, AddError> {
    let wrong = |what| FileError::at(what, job.disk);
    let disk = File::open(job.disk).map_err(wrong("can't open"))?;
    let parts = Parts::of(job, &disk)?;
    let folder = folder_of(job.disk);
    let new = tempfile::Builder::new().prefix(".kiln-").suffix(".raw").tempfile_in(folder);
    let new = new.map_err(wrong("can't write beside"))?;
    copy_sparse(&disk, new.as_file()).map_err(wrong("can't copy"))?;
    let work =
        tempfile::Builder::new().prefix(".kiln-").tempdir_in(folder).map_err(wrong("can't write beside"))?;
    parts.repair(job, new.as_file(), work.path())?;

    let roots = Roots { kiln: work.path().join("kiln"), esp: work.path().join("esp") };
    let known = parts.systems(job, new.path())?;
    let store = roots.kiln.join(STORE);
    fs::create_dir_all(&store).map_err(FileError::at("can't make", &store))?;
    for name in &known {
        let path = store.join(name);
        File::create(&path).map_err(FileError::at("can't write", &path))?;
    }
    let serial = parts.unpack_esp(new.as_file(), &roots.esp)?;
    let target = Target {
        roots: roots.clone(),
        arch: job.arch.to_string(),
        partition: job.partition.to_string(),
        running: Running::default(),
        keep: job.keep,
    };
    let file = File::open(job.file).map_err(FileError::at("can't open", job.file))?;
    let switched = switch(&target, file, &mut Steps::all())?;
    parts.write_store(job, new.path(), &store, &known)?;
    parts.write_esp(job, new.as_file(), &roots.esp, serial)?;
    let mode = disk.metadata().map_err(wrong("can't read"))?.permissions();
    new.as_file()
        .set_permissions(mode)
        .and_then(|()| new.as_file().sync_all())
        .map_err(wrong("can't write"))?;
    new.persist(job.disk).map_err(|e| wrong("can't replace")(e.error))?;
    Ok(switched)
}

/// The two partitions.
struct Parts {
    root: Entry,
    esp: Entry,
}

impl Parts {
    fn of(job: &AddJob<'_>, mut disk: &File) -> Result<Parts, AddError> {
        let no_store = |why: String| AddError::NoStore { path: job.disk.to_owned(), why };
        let mut bytes = vec![0; ((gpt::PRIMARY_SECTORS - 1) * SECTOR) as usize];
        disk.seek(SeekFrom::Start(SECTOR))
            .and_then(|_| disk.read_exact(&mut bytes))
            .map_err(|_| no_store("it has no partition table (a qcow2 has to be made raw first)".into()))?;
        let table = gpt::Table::decode(&bytes).map_err(|e| {
            no_store(format!("{e} (a qcow2 has to be made raw first: qemu-img convert -O raw)"))
        })?;
        let esp = table.entries.iter().find(|entry| entry.type_guid == gpt::ESP);
        let root = table.entries.iter().find(|entry| entry.guid == job.partition);
        match (root, esp) {
            (Some(root), Some(esp)) => Ok(Parts { root: root.clone(), esp: esp.clone() }),
            (None, _) => Err(no_store(format!(
                "it has no partition {}: a generation fits the disks of profiles of the same name",
                job.partition
            ))),
            (_, None) => Err(no_store("it has no EFI system partition".into())),
        }
    }

    /// Brings a file system in order that was not unmounted: debugfs doesn't look at the journal. Having replayed it, e2fsck opens
    /// its file again and forgets the offset (1.47): it is given a file of the partition's own.
    fn repair(&self, job: &AddJob<'_>, disk: &File, folder: &Path) -> Result<(), ImageError> {
        let start = self.root.first.offset().0;
        let path = folder.join("partition");
        if !needs_recovery(disk, start).map_err(FileError::at("can't read", job.disk))? {
            return Ok(());
        }
        let size = self.size(&self.root);
        let part = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let part = part.map_err(FileError::at("can't make", &path))?;
        part.set_len(size)
            .and_then(|()| copy_range(disk, start..start + size, &part, 0))
            .map_err(FileError::at("can't write", &path))?;
        let mut command = tools::command(job.tools, "e2fsck")?;
        command.args(["-p", "-E", "journal_only"]).arg(&path);
        match run("e2fsck", command, |_| Ok(())) {
            // 1: what was wrong is put right (e2fsck(8)).
            Err(ImageError::Failed { status, .. }) if status == "exit status: 1" => {}
            done => done?,
        }
        copy_range(&part, 0..size, disk, start).map_err(FileError::at("can't write", job.disk))?;
        Ok(fs::remove_file(&path).map_err(FileError::at("can't remove", &path))?)
    }

    fn device(&self, disk: &Path) -> std::ffi::OsString {
        let mut device = disk.as_os_str().to_owned();
        device.push(format!("?offset={}", self.root.first.offset().0));
        device
    }

    /// Names of the systems on the disk.
    fn systems(&self, job: &AddJob<'_>, disk: &Path) -> Result<BTreeSet<String>, ImageError> {
        let list = self.debugfs(job, disk, "ls -p /store\n", job.tools)?;
        // `/inode/mode/uid/gid/name/size/`
        let names = list.lines().filter_map(|line| line.split('/').nth(5));
        Ok(names.filter(|name| kiln_guest::generation::is_system_name(name)).map(str::to_owned).collect())
    }

    /// Brings the store on the disk to the state of the folder.
    fn write_store(
        &self,
        job: &AddJob<'_>,
        disk: &Path,
        store: &Path,
        known: &BTreeSet<String>,
    ) -> Result<(), ImageError> {
        let wrong = || FileError::at("can't read", store);
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(store).map_err(wrong())? {
            names.insert(entry.map_err(wrong())?.file_name().to_string_lossy().into_owned());
        }
        let mut script = String::from("cd /store\n");
        for gone in known.difference(&names) {
            script.push_str(&format!("rm {gone}\n"));
        }
        for name in &names {
            let new = fs::metadata(store.join(name)).map_err(wrong())?.len() > 0;
            if !new {
                continue;
            }
            if known.contains(name) {
                script.push_str(&format!("rm {name}\n"));
            }
            script.push_str(&format!("write {name} {name}\n"));
            for (field, value) in [("mode", "0100444".to_owned()), ("uid", "0".into()), ("gid", "0".into())] {
                script.push_str(&format!("sif {name} {field} {value}\n"));
            }
            for field in ["atime", "ctime", "mtime", "crtime"] {
                script.push_str(&format!("sif {name} {field} @{}\n", job.epoch));
            }
        }
        self.debugfs(job, disk, &script, store)?;
        // debugfs says nothing by its status: what it wrote is compared.
        let there = self.systems(job, disk)?;
        let wanted: BTreeSet<String> = names.into_iter().collect();
        if there != wanted || !self.is_clean(job, disk) {
            let output = "the partition has no room for a further system: give the disk more (`disk.size`, `disk.free`)";
            return Err(ImageError::Failed {
                program: "debugfs",
                status: "disk full".into(),
                output: output.into(),
            });
        }
        Ok(())
    }

    fn is_clean(&self, job: &AddJob<'_>, disk: &Path) -> bool {
        let Ok(mut command) = tools::command(job.tools, "e2fsck") else { return false };
        command.args(["-f", "-n"]).arg(self.device(disk));
        run("e2fsck", command, |_| Ok(())).is_ok()
    }

    /// Runs debugfs in `folder`; what it prints.
    fn debugfs(
        &self,
        job: &AddJob<'_>,
        disk: &Path,
        script: &str,
        folder: &Path,
    ) -> Result<String, ImageError> {
        let absolute = |path: &Path| path.canonicalize().map_err(FileError::at("can't find", path));
        let mut command = tools::command(&absolute(job.tools)?, "debugfs")?;
        command.arg("-w").arg(self.device(&absolute(disk)?)).current_dir(folder);
        command.env("SOURCE_DATE_EPOCH", job.epoch.to_string());
        let script_file =
            tempfile::NamedTempFile::new().map_err(FileError::at("can't make", &std::env::temp_dir()))?;
        fs::write(script_file.path(), script).map_err(FileError::at("can't write", script_file.path()))?;
        command.arg("-f").arg(script_file.path());
        let output = command.output().map_err(FileError::at("can't run", Path::new("debugfs")))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() {
            return Err(ImageError::Failed {
                program: "debugfs",
                status: output.status.to_string(),
                output: said,
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes the files of the EFI system partition into a folder; the file system's serial number.
    fn unpack_esp(&self, disk: &File, folder: &Path) -> Result<u32, AddError> {
        let damaged = |e: &dyn std::fmt::Display| AddError::NoStore {
            path: folder.to_owned(),
            why: format!("its EFI system partition can't be read: {e}"),
        };
        let part = Part::new(disk, self.esp.first.offset().0, self.size(&self.esp));
        let mut reader = read::Reader::open(part).map_err(|e| damaged(&e))?;
        let serial = u32::from_str_radix(&reader.serial().replace('-', ""), 16).map_err(|e| damaged(&e))?;
        let mut left = vec![(String::new(), 0)];
        while let Some((path, depth)) = left.pop() {
            let target = folder.join(&path);
            fs::create_dir_all(&target).map_err(FileError::at("can't make", &target))?;
            for entry in reader.list(&path).map_err(|e| damaged(&e))?.unwrap_or_default() {
                let inner =
                    if path.is_empty() { entry.name.clone() } else { format!("{path}/{}", entry.name) };
                // Names come from the disk: one that leads out of the folder is none.
                if entry.name.contains('/') || [".", ".."].contains(&entry.name.as_str()) {
                    continue;
                }
                if entry.is_dir {
                    left.extend((depth < DEPTH).then_some((inner, depth + 1)));
                    continue;
                }
                let bytes = reader.read(&inner, LARGEST).map_err(|e| damaged(&e))?.unwrap_or_default();
                let target = folder.join(&inner);
                fs::write(&target, bytes).map_err(FileError::at("can't write", &target))?;
            }
        }
        Ok(serial)
    }

    /// Writes the EFI system partition anew with the files of a folder.
    fn write_esp(&self, job: &AddJob<'_>, disk: &File, folder: &Path, serial: u32) -> Result<(), ImageError> {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files)?;
        let (base, size) = (self.esp.first.offset().0, self.size(&self.esp));
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(disk, hole, base as i64, size as i64)
            .map_err(|e| FileError::at("can't write", job.disk)(io::Error::from(e)))?;
        let volume = Volume {
            size: Bytes(size),
            hidden_sectors: u32::try_from(self.esp.first.0).unwrap_or(u32::MAX),
            id: serial,
            label: ESP_LABEL,
            time: job.epoch,
            files: &files,
        };
        Ok(volume.write(|at, bytes| disk.write_all_at(bytes, base + at))?)
    }

    fn size(&self, entry: &Entry) -> u64 {
        (entry.last.0 + 1 - entry.first.0) * SECTOR
    }
}

/// Whether the journal of the ext4 file system at `start` holds what is to be replayed.
fn needs_recovery(disk: &File, start: u64) -> io::Result<bool> {
    // `s_feature_incompat` of the superblock, and INCOMPAT_RECOVER in it (the kernel's documentation of ext4).
    const FEATURES: u64 = 1024 + 0x60;
    const RECOVER: u8 = 0x4;
    let mut features = [0];
    disk.read_exact_at(&mut features, start + FEATURES)?;
    Ok(features[0] & RECOVER != 0)
}

fn collect(folder: &Path, inner: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<(), FileError> {
    let wrong = || FileError::at("can't read", folder);
    for entry in fs::read_dir(folder).map_err(wrong())? {
        let entry = entry.map_err(wrong())?;
        let name = format!("{inner}{}", entry.file_name().to_string_lossy());
        if entry.file_type().map_err(wrong())?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.insert(name, fs::read(entry.path()).map_err(wrong())?);
        }
    }
    Ok(())
}
