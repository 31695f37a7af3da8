//! The reference of all fields of a profile, made from the contracts: their names, kinds, defaults and documentation.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nickel_lang_core::ast::pattern::PatternData;
use nickel_lang_core::ast::record::{FieldDef, Record};
use nickel_lang_core::ast::typ::Type;
use nickel_lang_core::ast::{Ast, AstAlloc, InputFormat, MergePriority, Node};
use nickel_lang_core::cache::{SourceCache, SourcePath};
use nickel_lang_core::position::TermPos;
use nickel_lang_core::traverse::{TraverseAlloc, TraverseControl};
use nickel_lang_core::typ::TypeF;

use super::modules::modules;

/// A field of a contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it may hold, in words.
    pub kind: String,
    /// The contract whose fields it or its entries have: a named one, or `PARENT.FIELD` for one written in place.
    pub record: Option<String>,
    /// What it is when left out, as Nickel; `None` when it has to be given.
    pub default: Option<String>,
    /// Whether it may be left out without having a default.
    pub optional: bool,
    /// Its documentation.
    pub doc: String,
}

/// The contracts by name; `System` is the whole system.
pub type Contracts = BTreeMap<String, Vec<Field>>;

/// The modules that hold contracts. A name is one contract in all of them.
const HOLDERS: [&str; 2] = ["kiln/publish.ncl", "kiln/system.ncl"];

/// All contracts of `kiln/system.ncl` and the modules that it takes contracts from.
#[must_use]
pub fn contracts() -> Contracts {
    let types = Parsed::of("kiln/types.ncl").docs();
    let mut contracts = Contracts::new();
    for holder in HOLDERS {
        let parsed = Parsed::of(holder);
        let alloc = AstAlloc::new();
        let Some(ast) = parsed.parse(&alloc) else { continue };
        let mut reader = Reader { parsed: &parsed, types: &types, contracts: &mut contracts };
        for (name, record) in records(&ast) {
            reader.read(&name, record);
        }
    }
    contracts
}

/// One of Kiln's modules, as text to parse.
struct Parsed {
    text: &'static str,
    cache: SourceCache,
    id: nickel_lang_core::files::FileId,
}

impl Parsed {
    fn of(name: &str) -> Parsed {
        let text = modules().iter().find(|m| m.name == name).map_or("", |m| m.text);
        let mut cache = SourceCache::new();
        let id = cache.add_string(SourcePath::Path(name.into(), InputFormat::Nickel), text.to_owned());
        Parsed { text, cache, id }
    }

    fn parse<'ast>(&self, alloc: &'ast AstAlloc) -> Option<Ast<'ast>> {
        self.cache.parse_nickel(alloc, self.id).ok()
    }

    /// The source text at `at`, its white space made single blanks.
    fn slice(&self, at: TermPos) -> String {
        let Some(span) = at.into_opt() else { return String::new() };
        let text = self.text.get(span.start.to_usize()..span.end.to_usize()).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The documentation of the fields of the module's record.
    fn docs(&self) -> BTreeMap<String, String> {
        let alloc = AstAlloc::new();
        let Some(ast) = self.parse(&alloc) else { return BTreeMap::new() };
        let mut docs = BTreeMap::new();
        let mut look = |ast: &Ast<'_>, (): &()| {
            if let Node::Record(record) = &ast.node {
                for def in record.field_defs {
                    if let (Some(name), Some(doc)) = (def.path_as_ident(), def.metadata.doc) {
                        docs.insert(name.label().to_owned(), doc.trim().to_owned());
                    }
                }
            }
            TraverseControl::<(), ()>::Continue
        };
        ast.traverse_ref(&mut look, &());
        docs
    }
}

/// The records that are bound to a name with a capital letter, by `let` or as a field.
fn records<'ast>(ast: &'ast Ast<'ast>) -> Vec<(String, &'ast Record<'ast>)> {
    let mut found = Vec::new();
    let mut add = |name: &str, value: &'ast Ast<'ast>| {
        if let Node::Record(record) = &value.node
            && name.starts_with(char::is_uppercase)
        {
            found.push((name.to_owned(), *record));
        }
    };
    let mut look = |ast: &'ast Ast<'ast>, (): &()| {
        match &ast.node {
            Node::Let { bindings, .. } => {
                for binding in *bindings {
                    if let PatternData::Any(name) = &binding.pattern.data {
                        add(name.label(), &binding.value);
                    }
                }
            }
            Node::Record(record) => {
                for def in record.field_defs {
                    if let (Some(name), Some(value)) = (def.path_as_ident(), &def.value) {
                        add(name.label(), value);
                    }
                }
            }
            _ => {}
        }
        TraverseControl::<(), ()>::Continue
    };
    ast.traverse_ref(&mut look, &());
    found
}

struct Reader<'a> {
    parsed: &'a Parsed,
    types: &'a BTreeMap<String, String>,
    contracts: &'a mut Contracts,
}

impl Reader<'_> {
    fn read<'ast>(&mut self, name: &str, record: &'ast Record<'ast>) {
        let fields = record.field_defs.iter().filter_map(|def| self.field(name, def)).collect();
        self.contracts.insert(name.to_owned(), fields);
    }

    fn field<'ast>(&mut self, parent: &str, def: &'ast FieldDef<'ast>) -> Option<Field> {
        let name = def.path_as_ident()?.label().to_owned();
        let metadata = &def.metadata;
        let mut kinds = Vec::new();
        let mut record = None;
        for contract in metadata.annotation.contracts {
            if let TypeF::Contract(Ast { node: Node::Record(inner), .. }) = &contract.typ {
                let inner_name = format!("{parent}.{name}");
                self.read(&inner_name, inner);
                record = Some(inner_name);
                continue;
            }
            let (kind, named) = self.kind(contract);
            kinds.extend((!kind.is_empty()).then_some(kind));
            record = record.or(named);
        }
        let default = match (&def.value, &metadata.priority) {
            (Some(value), MergePriority::Bottom) => Some(self.parsed.slice(value.pos)),
            (Some(_), _) => Some("follows from other fields".to_owned()),
            (None, _) => None,
        };
        let doc = metadata.doc.unwrap_or_default().trim().to_owned();
        Some(Field { name, kind: kinds.join("; "), record, default, optional: metadata.opt, doc })
    }

    /// What a contract lets through, in words, and the record contract that it names.
    fn kind(&self, contract: &Type<'_>) -> (String, Option<String>) {
        let text = self.parsed.slice(contract.pos);
        self.words(&text)
    }

    fn words(&self, text: &str) -> (String, Option<String>) {
        let text = text.trim();
        let inside = |open: &str, close: &str| text.strip_prefix(open)?.strip_suffix(close).map(str::trim);
        if let Some(inner) = inside("(", ")") {
            return self.words(inner);
        }
        if let Some(inner) = inside("{ _ |", "}") {
            let (kind, record) = self.words(inner);
            let of = if kind.is_empty() { String::new() } else { format!(" of: {kind}") };
            return (format!("record{of}"), record);
        }
        if let Some(inner) = text.strip_prefix("Array ") {
            return (format!("list of: {}", self.words(inner).0), None);
        }
        match text.strip_prefix("types.") {
            Some(name) if self.types.contains_key(name) => (self.documented(name), None),
            Some(call) => (made(call), None),
            None => match text {
                "Bool" => ("true or false".to_owned(), None),
                "String" => ("text".to_owned(), None),
                "Dyn" => ("anything".to_owned(), None),
                name if named(name).starts_with(char::is_uppercase) => {
                    (String::new(), Some(named(name).to_owned()))
                }
                other => (format!("`{other}`"), None),
            },
        }
    }

    /// The first sentence of a type's documentation, unless the type only completes others.
    fn documented(&self, name: &str) -> String {
        let doc = self.types.get(name).map(String::as_str).unwrap_or_default();
        if doc.starts_with("Every ") || doc.starts_with("Fills ") {
            return String::new();
        }
        let sentence = doc.trim_end_matches('.');
        let mut letters = sentence.chars();
        // An abbreviation stays as it is.
        let abbreviated = sentence.chars().take(2).all(char::is_uppercase);
        let first = letters.next().filter(|_| !abbreviated);
        match first {
            Some(first) => first.to_lowercase().chain(letters).collect(),
            None => sentence.to_owned(),
        }
    }
}

/// A contract's name without that of the module that it is taken from.
fn named(contract: &str) -> &str {
    contract.split_once('.').map_or(contract, |(_, name)| name)
}

/// The words for a contract made by a call: `one_of ["a", "b"]`, `whole "what" 0 9`, `matching "what" …`.
fn made(call: &str) -> String {
    let quoted: Vec<&str> = call.split('"').skip(1).step_by(2).collect();
    if call.starts_with("one_of") {
        return quoted.iter().map(|w| format!("`'{w}`")).collect::<Vec<_>>().join(", ");
    }
    if call.starts_with("whole") {
        let range = call.rsplit('"').next().unwrap_or_default().trim().replace(['(', ')'], "");
        return format!("whole number, {}", range.replace(' ', " to "));
    }
    quoted.first().map(|what| (*what).to_owned()).unwrap_or_default()
}

/// The reference as a page of Markdown.
#[must_use]
pub fn markdown() -> String {
    let contracts = contracts();
    let mut out = String::from(
        "# The profile\n\nMade from the contracts in `src/profile/ncl/` by `just reference`; an editor shows the same. How profiles \
         are written and put together is told in [the guide](../guide/profiles.md).\n\n\
         A field marked *required* has no default. One marked *optional* may be left out, and then says nothing.\n",
    );
    let Some(system) = contracts.get("System") else { return out };
    for field in system {
        let _ = write!(out, "\n## {}\n\n{}\n\n", field.name, unwrapped(&field.doc));
        let _ = writeln!(out, "{}", facts(field));
        if let Some(name) = &field.record {
            table(&mut out, &contracts, &[name], "");
        }
    }
    out
}

fn facts(field: &Field) -> String {
    let mut facts = Vec::new();
    if !field.kind.is_empty() {
        facts.push(capital(&field.kind));
    }
    facts.push(match (&field.default, field.optional) {
        (Some(default), _) if default.contains(' ') && !default.starts_with(['[', '"', 'i']) => {
            default.clone()
        }
        (Some(default), _) => format!("default `{default}`"),
        (None, true) => "*optional*".to_owned(),
        (None, false) => "*required*".to_owned(),
    });
    facts.join(" · ")
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A table of the fields of the last of `path`; those of records in it follow with their names in front. A contract that
/// holds itself is not told twice.
fn table(out: &mut String, contracts: &Contracts, path: &[&str], prefix: &str) {
    let Some(fields) = path.last().and_then(|name| contracts.get(*name)) else { return };
    if prefix.is_empty() {
        out.push_str("\n| field | holds | default | meaning |\n|---|---|---|---|\n");
    }
    for field in fields {
        let default = match (&field.default, field.optional) {
            (Some(default), _) => format!("`{default}`"),
            (None, true) => "*optional*".to_owned(),
            (None, false) => "*required*".to_owned(),
        };
        let cells =
            [field.kind.as_str(), default.as_str(), &unwrapped(&field.doc)].map(|c| c.replace('|', "\\|"));
        let _ = writeln!(out, "| `{prefix}{}` | {} |", field.name, cells.join(" | "));
        if let Some(inner) = field.record.as_deref().filter(|inner| !path.contains(inner)) {
            let entry = if field.kind.starts_with("record") || field.kind.contains("; record") {
                ".NAME"
            } else {
                ""
            };
            table(out, contracts, &[path, &[inner]].concat(), &format!("{prefix}{}{entry}.", field.name));
        }
    }
}

/// Documentation as one line.
fn unwrapped(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::{self, publish};
    use serde::Serialize;

    fn names(value: &impl Serialize) -> Vec<String> {
        let value = serde_json::to_value(value).unwrap();
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    }

    /// The Rust types and the contracts have the same fields.
    #[test]
    fn contracts_mirror_the_types() {
        let contracts = contracts();
        let fetch = system::Fetch {
            enable: true,
            url: String::new(),
            sha256: crate::digest::Digest([0; 32]),
            mode: String::new(),
            user: String::new(),
            group: String::new(),
        };
        for (name, types) in [
            ("System", names(&system::System::default())),
            ("Source", names(&system::Source::default())),
            ("Package", names(&system::Package::default())),
            ("Pin", names(&system::Pin::default())),
            ("LocalDeb", names(&system::LocalDeb::default())),
            ("DebconfAnswer", names(&system::DebconfAnswer::default())),
            ("Enable", names(&system::Enable::default())),
            ("System.keyboard", names(&system::Keyboard::default())),
            ("System.test", names(&system::test::Test::default())),
            ("System.test.derived", names(&system::test::Derived::default())),
            ("Check", names(&system::test::Check::default())),
            ("Check.user_data", names(&system::test::UserData::default())),
            ("Http", names(&system::test::Http::default())),
            ("FileCheck", names(&system::test::FileCheck::default())),
            ("User", names(&system::User::default())),
            ("Group", names(&system::Group::default())),
            ("File", names(&system::File::default())),
            ("Directory", names(&system::Directory::default())),
            ("Symlink", names(&system::Symlink::default())),
            ("Unit", names(&system::Unit::default())),
            ("Kernel", names(&system::Kernel::default())),
            ("Network", names(&system::Network::default())),
            ("Mount", names(&system::Mount::default())),
            ("System.swap", names(&system::Swap::default())),
            ("CloudInit", names(&system::CloudInit::default())),
            ("Ssh", names(&system::Ssh::default())),
            ("Fetch", names(&fetch)),
            ("Script", names(&system::Script::default())),
            ("System.disk", names(&system::Disk::default())),
            ("ExtraPartition", names(&system::ExtraPartition::default())),
            ("System.boot", names(&system::Boot::default())),
            ("System.state", names(&system::State::default())),
            ("Publish", names(&publish::Publish::default())),
            ("Publish.aws", names(&publish::Aws::default())),
            ("AwsRegion", names(&publish::Region::default())),
            ("AwsRole", names(&publish::Role::default())),
            ("AwsVolume", names(&publish::Volume::default())),
            ("AwsRegionVolume", names(&publish::RegionVolume::default())),
            ("AwsLaunch", names(&publish::Launch::default())),
            ("AwsRegionLaunch", names(&publish::RegionLaunch::default())),
            ("AwsSnapshotAccess", names(&publish::SnapshotAccess::default())),
            ("AwsRegionSnapshotAccess", names(&publish::RegionSnapshotAccess::default())),
            ("AwsProtection", names(&publish::Protection::default())),
            ("AwsRegionProtection", names(&publish::RegionProtection::default())),
            ("AwsRetention", names(&publish::Retention::default())),
            ("AwsUpload", names(&publish::Upload::default())),
            ("AwsRegionUpload", names(&publish::RegionUpload::default())),
        ] {
            let mut fields: Vec<String> = contracts[name].iter().map(|f| f.name.clone()).collect();
            fields.sort();
            assert_eq!(fields, types, "{name}");
        }
    }

    #[test]
    fn every_field_is_documented() {
        for (name, fields) in contracts() {
            for field in fields {
                assert!(!field.doc.is_empty(), "{name}.{}", field.name);
                assert!(!field.kind.is_empty() || field.record.is_some(), "{name}.{}", field.name);
            }
        }
    }
}
