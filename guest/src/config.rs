//! What the image tells the guest: `/usr/lib/kiln/state`, a word and a value a line.

use std::path::{Component, Path, PathBuf};

/// Where the configuration lies in the image.
pub const FILE: &str = "usr/lib/kiln/state";
/// The folders that are state: what the machine changes there lives outside of the image.
pub const FOLDERS: [&str; 4] = ["var", "home", "root", "srv"];
/// The folder that is the image's, with the machine's changes laid over it.
pub const ETC: &str = "etc";
/// How many generations are kept unless the image says otherwise.
const GENERATIONS: usize = 3;

/// How state and generations are to be treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What a clean slate leaves alone, relative to the root.
    pub keep: Vec<PathBuf>,
    /// Whether every boot begins with a clean slate, in memory.
    pub ephemeral: bool,
    /// How many generations are kept.
    pub generations: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { keep: Vec::new(), ephemeral: false, generations: GENERATIONS }
    }
}

/// A line that makes no sense. The image is started nevertheless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("/{FILE}: `{0}` is not understood")]
pub struct NotUnderstood(pub String);

impl Config {
    /// Reads a configuration.
    #[must_use]
    pub fn parse(text: &str) -> (Config, Vec<NotUnderstood>) {
        let (mut config, mut wrong) = (Config::default(), Vec::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (word, value) = line.split_once(' ').unwrap_or((line, ""));
            match (word, state_path(value.trim()), value.trim().parse::<usize>()) {
                ("keep", Some(path), _) if config.keep.contains(&path) => {}
                ("keep", Some(path), _) => config.keep.push(path),
                ("ephemeral", _, _) if value.is_empty() => config.ephemeral = true,
                ("generations", _, Ok(number)) if number > 0 => config.generations = number,
                _ => wrong.push(NotUnderstood(line.to_owned())),
            }
        }
        // What lies below another kept path is kept with it.
        let all = config.keep.clone();
        config.keep.retain(|path| !all.iter().any(|other| path != other && path.starts_with(other)));
        (config, wrong)
    }
}

/// A path below one of the folders that are state, relative to the root. The folders themselves can be kept, too, but for /etc: its
/// lower layer comes from the image.
fn state_path(text: &str) -> Option<PathBuf> {
    let path = Path::new(text).strip_prefix("/").ok()?;
    let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
    let mut parts = path.components();
    let first = parts.next()?.as_os_str();
    let known = FOLDERS.iter().any(|folder| first == *folder) || (first == ETC && parts.next().is_some());
    (normal && known).then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read() {
        let text = "# state\nkeep /var/lib/app\nkeep /etc/ssh\nkeep /var/lib/app/data\nkeep /var/lib/app/\n\ngenerations 5\n";
        let (config, wrong) = Config::parse(text);
        assert_eq!(config.keep, [Path::new("var/lib/app"), Path::new("etc/ssh")]);
        assert_eq!((config.generations, config.ephemeral, wrong), (5, false, vec![]));
        assert!(Config::parse("ephemeral\n").0.ephemeral);
        assert_eq!(Config::parse("").0, Config::default());
    }

    #[test]
    fn what_makes_no_sense_is_named_and_passed_over() {
        let text =
            "keep var/x\nkeep /usr/x\nkeep /etc\nkeep /var/../usr\ngenerations 0\nephemeral 1\nx\nkeep /srv";
        let (config, wrong) = Config::parse(text);
        assert_eq!(config.keep, [Path::new("srv")]);
        assert_eq!(wrong.len(), 7);
        assert_eq!(wrong[0].to_string(), "/usr/lib/kiln/state: `keep var/x` is not understood");
    }
}
