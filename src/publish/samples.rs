//! Publications for tests.

use crate::arch::Arch;
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::system::publish::{Aws, Publish, Region, Volume};
use crate::system::{Firmware, System};
use crate::units::{Bytes, GIB};

use super::Publication;
use super::resolve::{ImageFacts, resolve};

/// A region with nothing of its own.
pub(super) fn region() -> Region {
    Region { enable: true, required: true, ..Region::default() }
}

/// `publish.aws` with the contract's defaults, for these regions.
pub(super) fn aws(regions: &[&str]) -> Aws {
    Aws {
        regions: regions.iter().map(|name| ((*name).to_owned(), region())).collect(),
        name: "{name}-{version}-{arch}-{date}-{digest}".into(),
        description: "{name} {version} ({arch}), packages of {date}".into(),
        ena: true,
        root_device: "/dev/xvda".into(),
        volume: Volume { delete_on_termination: true, ..Volume::default() },
        ..Aws::default()
    }
}

/// A system that is published so.
pub(super) fn system(aws: Aws) -> System {
    let mut system =
        System { name: "web".into(), version: "1.2".into(), arch: Arch::Amd64, ..System::default() };
    system.boot.firmware = Firmware::Both;
    system.publish = Publish { aws };
    system
}

/// An image of 2 GiB less one MiB.
pub(super) fn facts() -> ImageFacts {
    ImageFacts {
        image: Digest::of(b"image"),
        size: Bytes(2 * GIB - (1 << 20)),
        lock: Digest::of(b"lock"),
        date: Timestamp(1_789_199_741),
        tested: true,
    }
}

/// What is published of [`facts`].
pub(super) fn publication(aws: Aws) -> Publication {
    resolve(&system(aws), &facts(), &|name| Err(format!("no {name}"))).unwrap()
}
