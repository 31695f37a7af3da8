//! The machine architectures that images are baked for.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A target architecture, by its Debian name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit x86 (`x86_64`).
    #[default]
    Amd64,
    /// 64-bit ARM (`aarch64`).
    Arm64,
}

impl Arch {
    /// Debian's name of the architecture.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        }
    }

    /// The multiarch triplet under which Debian keeps libraries.
    #[must_use]
    pub fn triplet(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64-linux-gnu",
            Arch::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// The architecture that this program runs on, when it is a target as well.
    #[must_use]
    pub fn host() -> Option<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Arch::Amd64),
            "aarch64" => Some(Arch::Arm64),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.debian())
    }
}
