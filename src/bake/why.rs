//! Which step of a build is cached, and which input changed since the last one.

use serde::Serialize;

use super::closure::ToolSet;
use super::{BakeError, Locked, Session};
use crate::store::{Change, Inputs, changes};
use crate::system::DiskLayout;

/// A step of the next build.
#[derive(Debug, Clone, Serialize)]
pub struct StepState {
    /// Its name.
    pub step: String,
    /// Whether the store has its result. Unknown while an earlier step's isn't there.
    pub cached: Option<bool>,
    /// The inputs that differ from the last build of the profile.
    pub changed: Vec<Change>,
}

/// What the next build of a profile would do.
#[derive(Debug, Clone, Serialize)]
pub struct Why {
    /// Whether the profile was built before.
    pub built_before: bool,
    /// The steps in order.
    pub steps: Vec<StepState>,
}

impl Session<'_> {
    /// Says of each step whether it is cached, and what changed since the last build.
    ///
    /// # Errors
    /// When a file of the profile can't be read.
    pub fn why(&self, locked: &Locked) -> Result<Why, BakeError> {
        let last = self.store.last(&locked.target());
        let mut steps = Vec::new();
        let mut state = |step: &str, inputs: Option<&Inputs>| {
            let cached = inputs.map(|i| self.store.lookup(i).is_some());
            let changed = match (&last, inputs) {
                (Some(last), Some(inputs)) => {
                    let of_step: Vec<Inputs> = last.iter().filter(|i| i.step == step).cloned().collect();
                    changes(&of_step, std::slice::from_ref(inputs))
                        .into_iter()
                        .flat_map(|c| c.changes)
                        .collect()
                }
                _ => Vec::new(),
            };
            steps.push(StepState { step: step.to_owned(), cached, changed });
        };
        let packages = super::steps::packages_inputs(locked);
        state("packages", Some(&packages));
        let packages = self.store.lookup(&packages);
        let tree = packages.as_ref().map(|p| super::steps::tree_inputs(locked, p)).transpose()?;
        state("tree", tree.as_ref());
        state("tools", Some(&Self::tools_inputs(locked, ToolSet::Disk)));
        let baked = tree.as_ref().and_then(|t| self.store.lookup(t));
        let mut content = baked;
        if locked.profile.system().disk.layout == DiskLayout::Store {
            let own = content.as_ref().map(|tree| self.generation_steps(locked, tree)).transpose()?;
            let own = own.unwrap_or_default();
            state("system", own.first());
            state("generation", own.get(1));
            content = own.get(1).and_then(|inputs| self.store.lookup(inputs));
        }
        let disk = content.map(|result| super::steps::disk_inputs_of(locked, &result));
        state("disk", disk.as_ref());
        Ok(Why { built_before: last.is_some(), steps })
    }
}
