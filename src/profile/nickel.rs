//! The evaluation itself: sources in, JSON out, errors as Nickel renders them.

use std::io;
use std::path::Path;

use nickel_lang_core::ast::InputFormat;
use nickel_lang_core::cache::{CacheHub, SourcePath};
use nickel_lang_core::error::{Error as NickelError, ImportErrorKind, NullReporter};
use nickel_lang_core::eval::cache::CacheImpl;
use nickel_lang_core::eval::{VirtualMachine, VmContext};
use nickel_lang_core::serialize::{ExportFormat, to_string, validate};

use super::project::Project;
use super::sources::{LoadError, OWN, Sources};
use super::{EvalRequest, ProfileError, Raw, diagnostics, quoting, sets};

/// Stack for parsing and exporting deeply nested values, in bytes. Nickel recurses there.
const STACK: usize = 256 << 20;

type Vm = VmContext<CacheHub, CacheImpl>;

/// Evaluates on a thread with a large stack; a panic of Nickel becomes an error.
pub(super) fn evaluate_on_big_stack(request: &EvalRequest) -> Result<Raw, ProfileError> {
    let internal = |reason: String| ProfileError::Internal(reason);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || quoting::evaluated(request, &evaluate))
            .map_err(|e| internal(format!("no thread: {e}")))?;
        thread.join().unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            // Nickel's arena panics when the child's limit leaves it none; the allocator itself aborts the child.
            if text.is_some_and(|t| t.contains("out of memory")) {
                return Err(super::child::too_much_memory());
            }
            Err(internal(format!("Nickel failed: {}", text.unwrap_or("no reason given"))))
        })
    })
}

fn evaluate(request: &EvalRequest) -> Result<Raw, ProfileError> {
    let project = Project::of(&request.profile, &request.roots)?;
    let format = format_of(&project.profile)?;
    let mut vm: Vm = VmContext::new(CacheHub::new(), io::sink(), NullReporter {});
    let mut sources = Sources::with_own(&mut vm.import_resolver);
    let json = load_and_export(request, &project, format, &mut vm, &mut sources)?;
    if let Some(path) = sources.stranger(&vm.import_resolver) {
        return Err(ProfileError::Internal(format!("Nickel read {path}, which was not admitted")));
    }
    if let Ok(system) = serde_json::from_str(&json) {
        let mut problems = super::validate::validate(&system);
        problems.extend(super::named::missing(&system, &project));
        if !problems.is_empty() {
            let hub = &vm.import_resolver;
            let shown = diagnostics::render_problems(hub, &sources, &problems, request.color);
            return Err(ProfileError::Invalid { problems, shown });
        }
    }
    let folder = project.folder().to_owned();
    let Project { root, roots, .. } = project;
    Ok(Raw { json, inputs: sources.inputs(), root, folder, roots })
}

fn format_of(profile: &Path) -> Result<InputFormat, ProfileError> {
    let known = InputFormat::from_path(profile).filter(|f| *f != InputFormat::Text);
    known.ok_or_else(|| ProfileError::Unreadable {
        path: profile.to_owned(),
        reason: "its name must end in .ncl, .toml, .yaml, .yml or .json".to_owned(),
    })
}

fn load_and_export(
    request: &EvalRequest,
    project: &Project,
    format: InputFormat,
    vm: &mut Vm,
    sources: &mut Sources,
) -> Result<String, ProfileError> {
    let render = |vm: &mut Vm, sources: &Sources, error: NickelError| {
        ProfileError::Nickel(diagnostics::render(&vm.import_resolver, sources, error, request.color))
    };
    if let Err(e) = sources.load(&mut vm.import_resolver, project, format) {
        let error = match e {
            LoadError::Profile(e) => return Err(e),
            LoadError::Parse(e) => (*e).into(),
            LoadError::Import(bad) => ImportErrorKind::IOError(bad.import, bad.reason, bad.at).into(),
        };
        return Err(render(vm, sources, error));
    }
    let main = main_expression(request, project, format, vm, sources)?;
    export(vm, main).map_err(|e| render(vm, sources, e))
}

/// Adds `(profile & overrides) | System` and answers its id.
fn main_expression(
    request: &EvalRequest,
    project: &Project,
    format: InputFormat,
    vm: &mut Vm,
    sources: &mut Sources,
) -> Result<nickel_lang_core::files::FileId, ProfileError> {
    let hub = &mut vm.import_resolver;
    let mut parts = vec![import(&project.profile, format)];
    for (index, set) in sets::overrides(&request.sets)?.into_iter().enumerate() {
        let path = Path::new(OWN).join(format!("set-{index}"));
        sources.add(hub, &path, InputFormat::Nickel, &set.text, &format!("--set {}", set.typed));
        parts.push(import(&path, InputFormat::Nickel));
    }
    let text = format!("({}) | (import \"kiln/system.ncl\").System\n", parts.join(" & "));
    let path = Path::new(OWN).join("main");
    sources.add(hub, &path, InputFormat::Nickel, &text, "kiln");
    let id = hub.sources.id_of(&SourcePath::Path(path, InputFormat::Nickel));
    id.ok_or_else(|| ProfileError::Internal("the main expression was lost".to_owned()))
}

fn import(path: &Path, format: InputFormat) -> String {
    // Paths that aren't UTF-8 were loaded under their lossy name as well.
    format!("(import {} as '{format})", sets::string(&path.to_string_lossy()))
}

fn export(vm: &mut Vm, main: nickel_lang_core::files::FileId) -> Result<String, NickelError> {
    let value = vm.prepare_eval(main)?;
    let value = VirtualMachine::new(vm).eval_full_for_export(value)?;
    let json = validate(ExportFormat::Json, &value).and_then(|()| to_string(ExportFormat::Json, &value));
    json.map_err(|e| e.with_pos_table(vm.pos_table.clone()).into())
}
