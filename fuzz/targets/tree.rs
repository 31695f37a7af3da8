//! Dumps of trees, as the store keeps them.
#![no_main]

use kiln::tree::Tree;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(tree) = Tree::parse(text) else { return };
    assert_eq!(Tree::parse(&tree.dump()).expect("what was printed reads"), tree);
});
