//! `--set version=1.10` gives a number where a text is meant: whether a text fits is found out by trying.

use serde_json::Value;

use super::{EvalRequest, ProfileError};

/// Evaluates; numbers that are complained of are taken as the text that was typed, where that helps.
///
/// # Errors
/// Those of evaluating.
pub(super) fn evaluated<T>(
    request: &EvalRequest,
    evaluate: &dyn Fn(&EvalRequest) -> Result<T, ProfileError>,
) -> Result<T, ProfileError> {
    let mut request = request.clone();
    let mut outcome = evaluate(&request);
    while let Err(ProfileError::Nickel(complaint)) = &outcome {
        let Some(index) = complained_of(&request, complaint) else { break };
        let (path, value) = &mut request.sets[index];
        *value = Value::from(value.as_str()).to_string();
        let typed = format!("--set {path}=");
        match evaluate(&request) {
            Err(ProfileError::Nickel(still)) if still.contains(&typed) => break,
            other => outcome = other,
        }
    }
    outcome
}

/// The first override that `complaint` names and that could be a text.
fn complained_of(request: &EvalRequest, complaint: &str) -> Option<usize> {
    let named = |(path, value): &(String, String)| complaint.contains(&format!("--set {path}={value}:"));
    request.sets.iter().position(|set| is_number(&set.1) && named(set))
}

/// Whether `value` is a number of JSON.
fn is_number(value: &str) -> bool {
    matches!(serde_json::from_str(value), Ok(Value::Number(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nickel<T>(text: &str) -> Result<T, ProfileError> {
        Err(ProfileError::Nickel(text.to_owned()))
    }

    fn request(sets: &[(&str, &str)]) -> EvalRequest {
        let sets = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
        EvalRequest { sets, ..EvalRequest::default() }
    }

    /// An evaluator that wants a text for `version` and a positive number for `uid`.
    fn evaluate(request: &EvalRequest) -> Result<Vec<String>, ProfileError> {
        for (path, value) in &request.sets {
            let right = match path.as_str() {
                "version" => value.starts_with('"'),
                _ => value.parse::<u32>().is_ok(),
            };
            if !right {
                return nickel(&format!("at --set {path}={value}:1:2"));
            }
        }
        Ok(request.sets.iter().map(|(_, value)| value.clone()).collect())
    }

    #[test]
    fn what_fits_as_text_only_is_text() {
        let found = evaluated(&request(&[("version", "1.10"), ("uid", "7")]), &evaluate).unwrap();
        assert_eq!(found, ["\"1.10\"", "7"]);
    }

    #[test]
    fn what_text_does_not_mend_is_complained_of_as_it_was_typed() {
        let error = evaluated(&request(&[("version", "1.10"), ("uid", "-1")]), &evaluate).unwrap_err();
        assert_eq!(error.to_string(), "at --set uid=-1:1:2");
        let error = evaluated(&request(&[("uid", "x")]), &evaluate).unwrap_err();
        assert_eq!(error.to_string(), "at --set uid=x:1:2");
    }
}
