//! What AWS charges for a publication, by its public list prices. An estimate to choose by and to show beforehand: what an
//! account pays depends on its region, its discounts and its taxes.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use serde::{Serialize, Serializer};

use crate::artifact::BLOCK;
use crate::units::GIB;

/// When the prices here were set down.
pub const AS_OF: &str = "2026-11";

/// An amount in millionths of a US dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(pub u64);

/// `PutSnapshotBlock`: $0.006 for 1000 blocks (EBS User Guide, "Pricing for EBS direct APIs"). Bytes that come in are free.
const PUT_BLOCK: Usd = Usd(6);
/// Amazon S3, `PUT`: $0.005 for 1000 requests (us-east-1). `ImportSnapshot` is free.
const PUT_PART: Usd = Usd(5);
/// Snapshots: $0.05 for a GiB and month (us-east-1, standard tier).
const STORAGE_GIB: Usd = Usd(50_000);
/// Blocks in a GiB.
const BLOCKS_PER_GIB: u64 = GIB / BLOCK;

/// What sending a GiB from a region to another costs (EC2 On-Demand Pricing, "Data transfer OUT from Amazon EC2 to other
/// AWS regions"): the beginning of the region's name, and the price.
const TRANSFER_GIB: [(&str, Usd); 16] = [
    ("us-gov-", Usd(30_000)),
    ("us-", Usd(20_000)),
    ("ca-", Usd(20_000)),
    ("eu-", Usd(20_000)),
    ("il-", Usd(80_000)),
    ("mx-", Usd(20_000)),
    ("ap-northeast-2", Usd(80_000)),
    ("ap-northeast-", Usd(90_000)),
    ("ap-south-1", Usd(86_000)),
    ("ap-southeast-1", Usd(90_000)),
    ("ap-southeast-2", Usd(98_000)),
    ("ap-east-1", Usd(90_000)),
    ("me-south-1", Usd(110_500)),
    ("me-central-1", Usd(110_500)),
    ("sa-east-1", Usd(138_000)),
    ("af-south-1", Usd(147_000)),
];
/// A region that isn't listed counts as the dearest one: a copy is never made to look cheaper than it is.
const DEAREST_GIB: Usd = Usd(147_000);
/// Between the two regions of the US east: half.
const NEAR_GIB: Usd = Usd(10_000);

/// So many blocks, put one by one.
#[must_use]
pub fn put(blocks: u64) -> Usd {
    PUT_BLOCK.times(blocks)
}

/// So many parts of an object, put one by one.
#[must_use]
pub fn put_parts(parts: u64) -> Usd {
    PUT_PART.times(parts)
}

/// So many blocks, copied from one region to another.
#[must_use]
pub fn copy(blocks: u64, from: &str, to: &str) -> Usd {
    per_gib(blocks, transfer(from, to))
}

/// So many blocks, kept as a snapshot for a month.
#[must_use]
pub fn storage(blocks: u64) -> Usd {
    per_gib(blocks, STORAGE_GIB)
}

fn transfer(from: &str, to: &str) -> Usd {
    if from == to {
        return Usd(0);
    }
    if matches!((from, to), ("us-east-1", "us-east-2") | ("us-east-2", "us-east-1")) {
        return NEAR_GIB;
    }
    let listed = TRANSFER_GIB.iter().find(|(begin, _)| from.starts_with(begin));
    listed.map_or(DEAREST_GIB, |(_, price)| *price)
}

/// Rounded up: nothing that costs something is shown as free.
fn per_gib(blocks: u64, price: Usd) -> Usd {
    let total = (u128::from(blocks) * u128::from(price.0)).div_ceil(u128::from(BLOCKS_PER_GIB));
    Usd(u64::try_from(total).unwrap_or(u64::MAX))
}

impl Usd {
    fn times(self, count: u64) -> Usd {
        Usd(self.0.saturating_mul(count))
    }
}

impl Add for Usd {
    type Output = Usd;
    fn add(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Usd) {
        *self = *self + other;
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Usd>>(amounts: I) -> Usd {
        amounts.fold(Usd(0), Add::add)
    }
}

impl fmt::Display for Usd {
    /// With four digits behind the point, rounded up: `$0.0123`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = self.0.div_ceil(100);
        write!(f, "${}.{:04}", hundredths / 10_000, hundredths % 10_000)
    }
}

impl Serialize for Usd {
    /// As dollars.
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        #[allow(clippy::cast_precision_loss)] // exact below nine billion dollars
        s.serialize_f64(self.0 as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_prices() {
        assert_eq!(put(100_000).to_string(), "$0.6000"); // the User Guide's own example
        assert_eq!(copy(BLOCKS_PER_GIB, "eu-central-1", "us-east-1").to_string(), "$0.0200");
        assert_eq!(copy(BLOCKS_PER_GIB, "us-east-1", "us-east-2").to_string(), "$0.0100");
        assert_eq!(copy(BLOCKS_PER_GIB, "sa-east-1", "us-east-2").to_string(), "$0.1380");
        assert_eq!(copy(BLOCKS_PER_GIB, "xx-new-1", "us-east-2").to_string(), "$0.1470");
        assert_eq!(copy(BLOCKS_PER_GIB, "us-gov-west-1", "us-gov-east-1").to_string(), "$0.0300");
        assert_eq!(copy(9, "eu-central-1", "eu-central-1"), Usd(0));
        assert_eq!(storage(2 * BLOCKS_PER_GIB).to_string(), "$0.1000");
    }

    #[test]
    fn nothing_is_shown_as_free_that_is_not() {
        assert_eq!(put(1).to_string(), "$0.0001");
        assert_eq!(copy(1, "eu-central-1", "us-east-1"), Usd(10));
        assert_eq!(put(u64::MAX), Usd(u64::MAX));
        assert_eq!(serde_json::to_string(&put(1000)).unwrap(), "0.006");
    }
}
