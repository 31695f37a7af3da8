//! `--set version=1.2` gives a number where a text is meant: whether quotes would help is found out by trying.

use std::fmt::Write as _;

use serde_json::Value;

use super::{EvalRequest, ProfileError};

/// A line for each override that `error` complains of and that is right once its value is a text.
pub(super) fn hints(
    request: &EvalRequest,
    error: &str,
    evaluate: &dyn Fn(&EvalRequest) -> Result<(), ProfileError>,
) -> String {
    let mut hints = String::new();
    for (index, (path, value)) in request.sets.iter().enumerate() {
        let typed = format!("--set {path}={value}");
        if !error.contains(&typed) || !looks_like_another(value) {
            continue;
        }
        let mut quoted = request.clone();
        quoted.sets[index].1 = format!("\"{value}\"");
        let still = match evaluate(&quoted) {
            Ok(()) => false,
            Err(error) => error.to_string().contains(&format!("--set {path}=")),
        };
        if !still {
            let _ = write!(
                hints,
                "\n    = a text that looks like a number is quoted: --set '{path}=\"{value}\"'"
            );
        }
    }
    hints
}

/// Whether `value` is JSON, yet neither text nor made of others.
fn looks_like_another(value: &str) -> bool {
    matches!(serde_json::from_str(value), Ok(Value::Number(_) | Value::Bool(_) | Value::Null))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_quotes_mend_is_hinted_at() {
        let sets =
            vec![("version".to_owned(), "1.2".to_owned()), ("users.a.uid".to_owned(), "-1".to_owned())];
        let request = EvalRequest { sets, ..EvalRequest::default() };
        let evaluate = |request: &EvalRequest| match &*request.sets[0].1 {
            "\"1.2\"" => Err(ProfileError::Nickel("--set users.a.uid=-1:1:2".to_owned())),
            _ => Err(ProfileError::Nickel("--set version=1.2:1:2".to_owned())),
        };
        let found = hints(&request, "at --set version=1.2:1:2", &evaluate);
        assert_eq!(found, "\n    = a text that looks like a number is quoted: --set 'version=\"1.2\"'");
        let wrong = |_: &EvalRequest| Err(ProfileError::Nickel("--set version=:1:2".to_owned()));
        assert_eq!(hints(&request, "--set version=1.2:1", &wrong), "");
        assert_eq!(hints(&EvalRequest::default(), "", &wrong), "");
    }
}
