//! The generations of a machine: their entries on the EFI system partition, their systems in the store, GRUB's menu of them.
//!
//! All of it works on two folders, the roots of the two partitions, so that it is the same on a machine that runs and on a disk
//! that is mounted somewhere.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cmdline;
use crate::copy;
use crate::error::{At, FileError};
use crate::generation::is_system_name;
use crate::menu::{self, ENTRIES, ENVIRONMENT, Entry, EntryName, Environment, MENUS, Standing, TRIES, Tries};
use crate::steps::{Steps, Stopped};
use crate::uki;

/// The folder of the systems' images on their partition.
pub const STORE: &str = "store";
/// How names of files begin that are being written into the store.
pub const INCOMING: &str = ".incoming-";
/// How names of files end that are being written on the EFI system partition: boot loaders don't look at them.
pub const UNFINISHED: &str = ".tmp";
/// Where a unified kernel image's headers surely end.
const HEADERS: u64 = 64 << 10;
/// The largest unified kernel image that is read.
pub const LARGEST_UKI: u64 = 1 << 30;

/// The roots of the two partitions.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Of the one with store and state.
    pub kiln: PathBuf,
    /// Of the EFI system partition.
    pub esp: PathBuf,
}

/// Who starts the generations, and so counts how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// systemd-boot, which counts in file names.
    Uefi,
    /// GRUB, which counts in its environment block.
    Bios,
}

/// A generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The name of its entry.
    pub name: EntryName,
    /// The file of its entry, as it is named.
    pub file: String,
    /// What its unified kernel image says; `None` when that can't be read.
    pub entry: Option<Entry>,
    /// How it stands with GRUB.
    pub grub: Option<Standing>,
}

impl Generation {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.name.generation
    }

    /// Whether it has come up once.
    #[must_use]
    pub fn blessed(&self) -> bool {
        self.name.tries.is_none()
    }

    /// The name of its system in the store.
    #[must_use]
    pub fn system(&self) -> Option<String> {
        let arguments = cmdline::arguments(&self.entry.as_ref()?.cmdline);
        cmdline::value(&arguments, "kiln.system").filter(|name| is_system_name(name)).map(str::to_owned)
    }

    /// How often it may still be tried; `None` when it has come up.
    #[must_use]
    pub fn left(&self, firmware: Firmware) -> Option<u32> {
        let Tries { left, .. } = self.name.tries?;
        match (firmware, self.grub) {
            (Firmware::Bios, Some(Standing::Good)) => None,
            (Firmware::Bios, Some(Standing::Left(left))) => Some(left),
            _ => Some(left),
        }
    }

    /// Whether the boot loader would start it.
    #[must_use]
    pub fn may_start(&self, firmware: Firmware) -> bool {
        self.left(firmware).is_none_or(|left| left > 0)
    }
}

/// The name of a generation's entry while it is written.
fn unfinished(generation: u32) -> String {
    format!("kiln-{generation:05}{UNFINISHED}")
}

/// Reads what a menu needs of a unified kernel image; all else is left zero, as it takes longer to read than to load.
fn outline(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = File::open(path).at("open", path)?;
    let len = file.metadata().at("read", path)?.len();
    if len > LARGEST_UKI {
        return Ok(None);
    }
    let mut image = vec![0; len as usize];
    let headers = len.min(HEADERS) as usize;
    file.read_exact_at(&mut image[..headers], 0).at("read", path)?;
    let Ok(sections) = uki::sections(&image[..headers]) else { return Ok(None) };
    for section in sections.iter().filter(|s| [".osrel", ".cmdline"].contains(&s.name.as_str())) {
        let (offset, size) = (section.offset as usize, section.size as usize);
        let Some(bytes) = image.get_mut(offset..offset.saturating_add(size)) else { return Ok(None) };
        file.read_exact_at(bytes, section.offset).at("read", path)?;
    }
    Ok(Some(image))
}

/// Writes a file of the EFI system partition where it is.
///
/// One that is replaced by renaming another is lost for a while on FAT: what it held is given back, on the disk as well, before its
/// name leads to what is new.
fn overwrite(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let file = File::options().create(true).truncate(false).write(true).open(path).at("open", path)?;
    file.write_all_at(bytes, 0).and_then(|()| file.sync_all()).at("write", path)?;
    copy::sync_file_system(path)
}

/// Names of the files in a folder; none when there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.at("read", folder)?,
    };
    let names: io::Result<Vec<_>> =
        entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned())).collect();
    names.at("read", folder)
}

impl Roots {
    /// The folder of entries.
    #[must_use]
    pub fn entries(&self) -> PathBuf {
        self.esp.join(ENTRIES)
    }

    /// The folder of systems.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.kiln.join(STORE)
    }

    /// All generations, the oldest first.
    ///
    /// # Errors
    /// When the EFI system partition can't be read.
    pub fn generations(&self) -> Result<Vec<Generation>, FileError> {
        let environment = self.environment();
        let mut generations = Vec::new();
        for file in names(&self.entries())? {
            let Some(name) = EntryName::parse(&file) else { continue };
            let image = outline(&self.entries().join(&file))?;
            let entry = image.and_then(|image| Entry::of(name.generation, &image).ok());
            let grub = environment.standing(name.generation);
            let generation = Generation { name, file, entry, grub };
            let at = generations.partition_point(|g: &Generation| g.number() <= generation.number());
            generations.insert(at, generation);
        }
        Ok(generations)
    }

    /// Whether the disk also boots through GRUB.
    fn has_grub(&self) -> bool {
        self.esp.join(ENVIRONMENT).parent().is_some_and(Path::is_dir)
    }

    /// A block that can't be read is an empty one: GRUB sees it the same way.
    fn environment(&self) -> Environment {
        fs::read(self.esp.join(ENVIRONMENT)).map(|block| Environment::parse(&block)).unwrap_or_default()
    }

    /// Notes in GRUB's environment block how a generation stands.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn note(&self, changes: &[(u32, Option<Standing>)], steps: &mut Steps) -> Result<(), Stopped> {
        let before = self.environment();
        let mut after = before.clone();
        changes.iter().for_each(|(generation, standing)| after.set(*generation, *standing));
        if !self.has_grub() || after == before {
            return Ok(());
        }
        steps.step()?;
        Ok(self.write_environment(&after)?)
    }

    /// Writes the block where it is, as GRUB does: what changes lies in its first sector.
    fn write_environment(&self, environment: &Environment) -> Result<(), FileError> {
        // One that is full says nothing of generations any longer: begun anew, it only lets some be tried again.
        let block =
            environment.print().or_else(|| environment.of_no_generation().print()).unwrap_or_default();
        overwrite(&self.esp.join(ENVIRONMENT), &block)
    }

    /// Writes GRUB's menu of all generations but some: the one of the two that isn't in use, which then is.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_menu(&self, but: &[u32], steps: &mut Steps) -> Result<(), Stopped> {
        if !self.has_grub() {
            return Ok(());
        }
        let generations = self.generations()?;
        let entries: Vec<Entry> =
            generations.into_iter().filter(|g| !but.contains(&g.number())).filter_map(|g| g.entry).collect();
        let (bytes, mut environment) = (menu::menu_file(&menu::grub_menu(&entries)), self.environment());
        let in_use = environment.menu();
        if fs::read(self.esp.join(MENUS[in_use])).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        let other = 1 - in_use;
        steps.step()?;
        overwrite(&self.esp.join(MENUS[other]), &bytes)?;
        environment.set_menu(other);
        steps.step()?;
        Ok(self.write_environment(&environment)?)
    }

    /// Removes what an interrupted `kiln switch` left.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove_unfinished(&self) -> Result<(), FileError> {
        for name in names(&self.store())?.iter().filter(|name| name.starts_with(INCOMING)) {
            copy::remove(&self.store().join(name))?;
        }
        let entries = names(&self.entries())?;
        for name in entries.iter().filter(|name| name.ends_with(UNFINISHED)) {
            let whole = |other: &&String| {
                EntryName::parse(other).is_some_and(|entry| unfinished(entry.generation) == *name)
            };
            match entries.iter().find(whole) {
                None => copy::remove(&self.entries().join(name))?,
                Some(entry) => self.untangle(name, entry)?,
            }
        }
        Ok(())
    }

    /// Writes an entry: all of it under a name at which no boot loader looks, then in one step under its own.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_entry(&self, name: EntryName, uki: &[u8], steps: &mut Steps) -> Result<(), Stopped> {
        let path = self.entries().join(name.to_string());
        let new = self.entries().join(unfinished(name.generation));
        steps.step()?;
        copy::remove(&new)?;
        let mut file = File::options().write(true).create_new(true).open(&new).at("create", &new)?;
        io::Write::write_all(&mut file, uki).and_then(|()| file.sync_all()).at("write", &new)?;
        steps.step()?;
        fs::rename(&new, &path).at("create", &path)?;
        Ok(copy::sync_file_system(&self.esp)?)
    }

    /// Takes one of two names of an entry away. A cut in the middle of a rename leaves both on FAT, with their bytes in common: whichever
    /// is removed takes them along, so that the other is written anew.
    fn untangle(&self, name: &str, keep: &str) -> Result<(), FileError> {
        let (path, kept) = (self.entries().join(name), self.entries().join(keep));
        let bytes = fs::read(&kept).at("read", &kept)?;
        copy::remove(&path)?;
        copy::remove(&kept)?;
        copy::sync_file_system(&self.esp)?;
        let mut file = File::options().write(true).create_new(true).open(&kept).at("create", &kept)?;
        io::Write::write_all(&mut file, &bytes).and_then(|()| file.sync_all()).at("write", &kept)?;
        copy::sync_file_system(&self.esp)
    }

    /// Notes that a generation has come up; whether that wasn't known.
    ///
    /// # Errors
    /// When the entry can't be renamed.
    pub fn bless(&self, number: u32, steps: &mut Steps) -> Result<bool, Stopped> {
        self.note(&[(number, Some(Standing::Good))], steps)?;
        let generations = self.generations()?;
        let Some(generation) = generations.iter().find(|g| g.number() == number && !g.blessed()) else {
            return Ok(false);
        };
        self.rename(generation, None, steps)?;
        Ok(true)
    }

    /// Lets a generation be tried again as often as a new one.
    ///
    /// # Errors
    /// When the entry can't be renamed.
    pub fn let_try_again(&self, generation: &Generation, steps: &mut Steps) -> Result<(), Stopped> {
        self.note(&[(generation.number(), Some(Standing::Left(TRIES)))], steps)?;
        self.rename(generation, Some(Tries { left: TRIES, done: 0 }), steps)
    }

    fn rename(
        &self,
        generation: &Generation,
        tries: Option<Tries>,
        steps: &mut Steps,
    ) -> Result<(), Stopped> {
        let name = EntryName { generation: generation.number(), tries };
        let (from, to) = (self.entries().join(&generation.file), self.entries().join(name.to_string()));
        steps.step()?;
        if from != to && to.exists() {
            return Ok(self.untangle(&generation.file, &name.to_string())?);
        }
        fs::rename(&from, &to).at("rename", &from)?;
        Ok(copy::sync_file_system(&self.esp)?)
    }

    /// Removes the oldest generations until so many are left, but never one that [`surplus`] protects; then the systems that
    /// no entry names. Gives the numbers of the generations that went.
    ///
    /// # Errors
    /// When something can't be removed.
    pub fn prune(&self, keep: usize, running: &Running, steps: &mut Steps) -> Result<Vec<u32>, Stopped> {
        let removed = self.prune_entries(keep, running, steps)?;
        self.remove_unused_systems(running, steps)?;
        Ok(removed)
    }

    /// Removes the entries of the oldest generations, but not their systems.
    ///
    /// # Errors
    /// When something can't be removed.
    pub fn prune_entries(
        &self,
        keep: usize,
        running: &Running,
        steps: &mut Steps,
    ) -> Result<Vec<u32>, Stopped> {
        let generations = self.generations()?;
        let removed = surplus(&generations, keep, running.generation);
        let numbers: Vec<u32> = removed.iter().map(|g| g.number()).collect();
        // What is going is out of the menu before it is gone.
        self.write_menu(&numbers, steps)?;
        for generation in &removed {
            steps.step()?;
            copy::remove(&self.entries().join(&generation.file))?;
        }
        if !removed.is_empty() {
            copy::sync_file_system(&self.esp)?;
        }
        // Also what an interrupted call before this one didn't come to forget.
        let left: Vec<u32> =
            generations.iter().map(Generation::number).filter(|n| !numbers.contains(n)).collect();
        let known = self.environment().generations();
        let forgotten: Vec<_> = known.into_iter().filter(|n| !left.contains(n)).map(|n| (n, None)).collect();
        self.note(&forgotten, steps)?;
        Ok(numbers)
    }

    /// Removes the systems that no entry names and that isn't running.
    fn remove_unused_systems(&self, running: &Running, steps: &mut Steps) -> Result<(), Stopped> {
        let systems: Vec<Option<String>> = self.generations()?.iter().map(Generation::system).collect();
        // An entry that can't be read may need any of them.
        let Some(used) = systems.into_iter().collect::<Option<Vec<String>>>() else { return Ok(()) };
        for name in names(&self.store())? {
            if is_system_name(&name) && !used.contains(&name) && running.system.as_ref() != Some(&name) {
                steps.step()?;
                copy::remove(&self.store().join(name))?;
            }
        }
        Ok(())
    }
}

/// What is running.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// Its generation, if it has one.
    pub generation: Option<u32>,
    /// Its system's name in the store.
    pub system: Option<String>,
}

impl Running {
    /// Finds out which generation is running: the one that the boot loader says it selected, or else the one whose command
    /// line the kernel was given.
    #[must_use]
    pub fn of(generations: &[Generation], arguments: &[String], selected: Option<&str>) -> Running {
        let system = cmdline::value(arguments, "kiln.system").map(str::to_owned);
        let same_system = |g: &&Generation| g.system() == system && system.is_some();
        let candidates: Vec<&Generation> = generations.iter().filter(same_system).collect();
        let selected = selected.and_then(EntryName::parse).map(|name| name.generation);
        let chosen = candidates.iter().find(|g| Some(g.number()) == selected);
        // Loaders only add arguments. Of several that fit, the one with the most arguments fits best.
        let fit = |g: &&&Generation| {
            let own = cmdline::arguments(&g.entry.as_ref()?.cmdline);
            own.iter().all(|argument| arguments.contains(argument)).then_some(own.len())
        };
        let fits = candidates.iter().filter(|g| fit(g).is_some());
        let best = fits.max_by_key(|g| (fit(g), g.number()));
        let generation = chosen.or(best).or(candidates.last()).map(|g| g.number());
        Running { generation, system }
    }
}

/// The generations that are too many, when so many are to be kept: never the newest, the one that is running, or the newest that
/// has come up.
#[must_use]
pub fn surplus(generations: &[Generation], keep: usize, running: Option<u32>) -> Vec<&Generation> {
    let newest = generations.last().map(Generation::number);
    let blessed = generations.iter().rev().find(|g| g.blessed()).map(Generation::number);
    let protected = [newest, running, blessed];
    let mut too_many = generations.len().saturating_sub(keep.max(1));
    let mut surplus = Vec::new();
    for generation in generations {
        if too_many > 0 && !protected.contains(&Some(generation.number())) {
            too_many -= 1;
            surplus.push(generation);
        }
    }
    surplus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::menu::Sectors;

    fn generation(number: u32, tries: Option<Tries>, cmdline: &str) -> Generation {
        let sectors = Sectors { first: 0, count: 0 };
        let name = EntryName { generation: number, tries };
        Generation {
            name,
            file: name.to_string(),
            entry: Some(Entry {
                generation: number,
                title: String::new(),
                cmdline: cmdline.to_owned(),
                linux: sectors,
                initrd: sectors,
            }),
            grub: None,
        }
    }

    const NEW: Option<Tries> = Some(Tries { left: 3, done: 0 });

    fn numbers(generations: &[&Generation]) -> Vec<u32> {
        generations.iter().map(|g| g.number()).collect()
    }

    #[test]
    fn what_is_needed_is_never_too_much() {
        let all =
            [(1, None), (2, None), (3, NEW), (4, NEW), (5, NEW)].map(|(n, tries)| generation(n, tries, ""));
        assert_eq!(numbers(&surplus(&all, 3, Some(2))), [1, 3]);
        assert_eq!(numbers(&surplus(&all, 1, Some(2))), [1, 3, 4]);
        assert_eq!(numbers(&surplus(&all, 0, Some(1))), [3, 4]);
        assert_eq!(numbers(&surplus(&all, 5, None)), Vec::<u32>::new());
        assert_eq!(numbers(&surplus(&[], 1, None)), Vec::<u32>::new());
    }

    #[test]
    fn the_running_one_is_found() {
        let digest = "0123456789abcdef".repeat(4);
        let (a, b) = (format!("kiln.system={digest}-a"), format!("kiln.system={digest}-b"));
        let all = [
            generation(1, None, &format!("{a} quiet")),
            generation(2, None, &b),
            generation(3, NEW, &b),
            generation(4, NEW, &format!("{b} debug")),
        ];
        let running =
            |line: &str, selected| Running::of(&all, &cmdline::arguments(line), selected).generation;
        assert_eq!(running(&format!("BOOT_IMAGE=(uki)8 {a} quiet"), None), Some(1));
        assert_eq!(running(&b, None), Some(3));
        assert_eq!(running(&format!("{b} debug"), None), Some(4));
        assert_eq!(running(&b, Some("kiln-00002.efi")), Some(2));
        assert_eq!(running(&b, Some("kiln-00002+2-1.efi")), Some(2));
        // The loader can't have selected what has another system.
        assert_eq!(running(&a, Some("kiln-00002.efi")), Some(1));
        assert_eq!(running(&format!("{a} other"), None), Some(1));
        assert_eq!(running("quiet", None), None);
    }

    #[test]
    fn each_boot_loader_counts_for_itself() {
        let mut g = generation(1, Some(Tries { left: 2, done: 1 }), "");
        g.grub = Some(Standing::Left(0));
        assert_eq!((g.left(Firmware::Uefi), g.left(Firmware::Bios)), (Some(2), Some(0)));
        assert!(g.may_start(Firmware::Uefi) && !g.may_start(Firmware::Bios));
        g.grub = Some(Standing::Good);
        assert_eq!((g.left(Firmware::Uefi), g.left(Firmware::Bios)), (Some(2), None));
        g.name.tries = None;
        assert_eq!((g.left(Firmware::Uefi), g.left(Firmware::Bios)), (None, None));
    }
}
