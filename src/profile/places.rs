//! Where in a profile's files a field is written, so that what is wrong with it can be shown there.

use std::ops::Range;

use nickel_lang_core::ast::record::FieldDef;
use nickel_lang_core::ast::{Ast, AstAlloc, InputFormat, Node};
use nickel_lang_core::cache::{CacheHub, SourcePath};
use nickel_lang_core::files::FileId;
use nickel_lang_core::traverse::{TraverseAlloc, TraverseControl};

use super::path::FieldPath;
use super::sources::OWN;

/// A place in a file.
pub(super) type Place = (FileId, Range<usize>);

/// Where the profile's Nickel files define `field`; where they define as much of it as any does.
pub(super) fn of_field(hub: &CacheHub, field: &FieldPath) -> Vec<Place> {
    let mut found: Vec<(usize, Place)> = Vec::new();
    for (id, _) in nickel_files(hub).filter(|(_, path)| !path.starts_with(OWN)) {
        let alloc = AstAlloc::new();
        if let Ok(ast) = hub.sources.parse_nickel(&alloc, id) {
            descend(&ast, &field.0, 0, &mut |depth, range| found.push((depth, (id, range))));
        }
    }
    let deepest = found.iter().map(|(depth, _)| *depth).max().unwrap_or_default();
    let mut places: Vec<Place> =
        found.into_iter().filter(|(depth, _)| *depth == deepest).map(|(_, place)| place).collect();
    places.sort_by_key(|(id, range)| (*id, range.start));
    places
}

/// Tells `see` of each definition in `ast` on the way to the field that `rest` leads to, `depth` names in.
fn descend<'ast>(
    ast: &'ast Ast<'ast>,
    rest: &[String],
    depth: usize,
    see: &mut dyn FnMut(usize, Range<usize>),
) {
    let mut look = |ast: &'ast Ast<'ast>, (): &()| {
        let Node::Record(record) = &ast.node else { return TraverseControl::<(), ()>::Continue };
        for definition in record.field_defs {
            let along = shared(definition, rest);
            let Some(last) = along.checked_sub(1) else { continue };
            if let Some(span) = definition.path[last].pos().into_opt() {
                see(depth + along, span.start.to_usize()..span.end.to_usize());
            }
            if let Some(value) = definition.value.as_ref().filter(|_| along == definition.path.len()) {
                descend(value, &rest[along..], depth + along, see);
            }
        }
        TraverseControl::SkipBranch
    };
    ast.traverse_ref(&mut look, &());
}

/// How many names of a definition's path are the first of `rest`.
fn shared(definition: &FieldDef<'_>, rest: &[String]) -> usize {
    let names = definition.path.iter().map(|part| part.try_as_ident());
    names.zip(rest).take_while(|(name, wanted)| name.is_some_and(|name| name.label() == *wanted)).count()
}

/// All Nickel files that were read, Kiln's own too.
pub(super) fn nickel_files(hub: &CacheHub) -> impl Iterator<Item = (FileId, String)> {
    hub.sources.file_paths.iter().filter_map(|(id, path)| match path {
        SourcePath::Path(path, InputFormat::Nickel) => Some((*id, path.to_string_lossy().into_owned())),
        _ => None,
    })
}

/// Where a TOML, YAML or JSON text first has a key called `name`.
pub(super) fn of_key(text: &str, name: &str) -> Option<Range<usize>> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let comment = line.trim_start().starts_with('#');
        let found = line.match_indices(name).find(|(at, _)| !comment && is_key(line, *at, name.len()));
        if let Some((at, _)) = found {
            return Some(start + at..start + at + name.len());
        }
        start += line.len();
    }
    None
}

/// Whether the word at `at` stands alone, and is followed by what follows keys: of a table, of a pair.
fn is_key(line: &str, at: usize, len: usize) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let (before, after) = (&line[..at], &line[at + len..]);
    let after = after.strip_prefix(['"', '\'']).unwrap_or(after);
    !before.ends_with(part) && after.trim_start().starts_with([']', '.', '=', ':'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_data_files_are_found() {
        let found = |text: &str, name: &str| of_key(text, name).map(|range| range.start);
        assert_eq!(found("name = \"users\"\n# users = 1\n[users.ann]\n", "users"), Some(28));
        assert_eq!(found("a: 1\nusers:\n  ann: {}\n", "users"), Some(5));
        assert_eq!(found("{\"a\": \"users\", \"users\" : {}}", "users"), Some(16));
        assert_eq!(found("my-users = 1\nusers-of = 2\n", "users"), None);
        assert_eq!(found("", "x"), None);
    }
}
