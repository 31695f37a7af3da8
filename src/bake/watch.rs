//! How a bake tells what it is doing, without knowing who listens.

/// Listens to a bake.
pub trait Watch: Sync {
    /// One thing in passing: `what` is a short word such as `locked`.
    fn say(&self, what: &str, text: &str);
    /// A task of `total` bytes begins (0: of unknown length); dropping the answer ends it.
    fn task<'a>(&'a self, what: &str, text: &str, total: u64) -> Box<dyn Advance + 'a>;
}

/// A task under way.
pub trait Advance: Sync {
    /// `done` bytes of the total are done; `text` says what is at hand, empty for no change.
    fn at(&self, done: u64, text: &str);
}

/// Nobody listens.
pub struct Unwatched;

impl Watch for Unwatched {
    fn say(&self, _: &str, _: &str) {}
    fn task<'a>(&'a self, _: &str, _: &str, _: u64) -> Box<dyn Advance + 'a> {
        Box::new(Unwatched)
    }
}

impl Advance for Unwatched {
    fn at(&self, _: u64, _: &str) {}
}
