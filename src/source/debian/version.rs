//! Debian version numbers and their order (Debian Policy 5.6.12, deb-version(7)).

use std::cmp::Ordering;
use std::fmt;

/// A version, `[epoch:]upstream[-revision]`, ordered as dpkg orders it.
///
/// Any text can be compared; equality is the order's, so that `1.0` equals `1.00` and `1.0-0`.
#[derive(Debug, Clone, Copy)]
pub struct Version<'a>(pub &'a str);

impl<'a> Version<'a> {
    /// Epoch (without leading zeroes), upstream version, revision.
    fn parts(self) -> (&'a str, &'a str, &'a str) {
        let (epoch, rest) = self.0.split_once(':').unwrap_or(("", self.0));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch.trim_start_matches('0'), upstream, revision)
    }

    /// The upstream version alone, without epoch and revision.
    #[must_use]
    pub fn upstream(self) -> &'a str {
        self.parts().1
    }
}

impl Ord for Version<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.0 == other.0 {
            return Ordering::Equal;
        }
        let ((epoch, upstream, revision), (epoch2, upstream2, revision2)) = (self.parts(), other.parts());
        compare_part(epoch.as_bytes(), epoch2.as_bytes())
            .then_with(|| compare_part(upstream.as_bytes(), upstream2.as_bytes()))
            .then_with(|| compare_part(revision.as_bytes(), revision2.as_bytes()))
    }
}

impl PartialOrd for Version<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version<'_> {}

impl fmt::Display for Version<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Compares one part: runs of non-digits by [`weight`], runs of digits by value, in turn, until one differs.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        while !at_digit_or_end(a) || !at_digit_or_end(b) {
            match weight(a.first()).cmp(&weight(b.first())) {
                Ordering::Equal => (a, b) = (&a[1..], &b[1..]),
                different => return different,
            }
        }
        let (digits, digits2);
        (digits, a) = take_number(a);
        (digits2, b) = take_number(b);
        let order = digits.len().cmp(&digits2.len()).then_with(|| digits.cmp(digits2));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

fn at_digit_or_end(text: &[u8]) -> bool {
    text.first().is_none_or(u8::is_ascii_digit)
}

/// `~` sorts before the end of the part, which sorts (as digits do) before letters, and those before all others.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(b) if b.is_ascii_digit() => 0,
        Some(&b) if b.is_ascii_alphabetic() => i32::from(b),
        Some(&b) => i32::from(b) + 256,
    }
}

/// The digits at the beginning, without leading zeroes, and what follows them.
fn take_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let zeroes = text[..end].iter().take_while(|b| **b == b'0').count();
    (&text[zeroes..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_as_dpkg_has_it() {
        // Each line was asked of `dpkg --compare-versions`.
        let rising = [
            "~~",
            "~~a",
            "~",
            "0~1",
            "0",
            "0.0",
            "1.0~beta1~svn1245",
            "1.0~beta1",
            "1.0",
            "1.0-0.1",
            "1.0-1",
            "1.0-1~",
            "1.0a",
            "1.0+b1",
            "1.0.1",
            "1.2",
            "1.10",
            "1:0.1",
            "2:0",
        ];
        let mut sorted = rising;
        sorted.sort_by_key(|v| Version(v));
        let expected = [
            "~~",
            "~~a",
            "~",
            "0~1",
            "0",
            "0.0",
            "1.0~beta1~svn1245",
            "1.0~beta1",
            "1.0",
            "1.0-0.1",
            "1.0-1~",
            "1.0-1",
            "1.0a",
            "1.0+b1",
            "1.0.1",
            "1.2",
            "1.10",
            "1:0.1",
            "2:0",
        ];
        assert_eq!(sorted, expected);
    }

    #[test]
    fn equal_though_written_otherwise() {
        for (a, b) in [("1.0", "1.00"), ("0:1", "1"), ("1.0-0", "1.0"), ("", "0")] {
            assert_eq!(Version(a), Version(b), "{a} {b}");
        }
    }

    #[test]
    fn parts() {
        assert_eq!(Version("1:2:3-4-5").parts(), ("1", "2:3-4", "5"));
        assert_eq!(Version("6.1.2+dfsg").upstream(), "6.1.2+dfsg");
    }

    const TEXT: &str = "([0-9]:)?[0-9a-c.+~]{0,6}(-[0-9a~+.]{0,3})?";

    proptest! {
        #[test]
        fn a_total_order(a in TEXT, b in TEXT, c in TEXT) {
            let (a, b, c) = (Version(&a), Version(&b), Version(&c));
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }

        #[test]
        fn no_text_panics(a in "\\PC*", b in "\\PC*") {
            let _ = Version(&a).cmp(&Version(&b));
        }
    }
}
