//! What names may be, once their templates are filled in.

use std::ops::RangeInclusive;

/// Characters that an AMI's name may have (`RegisterImage`, `Name`).
const AMI: RangeInclusive<usize> = 3..=128;
/// Characters that its description may have (`RegisterImage`, `Description`).
const DESCRIPTION: usize = 255;
/// Characters that a parameter's name may have: 1011 with the ARN in front, whose fixed part stays below 110.
const PARAMETER: usize = 900;

/// What is wrong with an AMI's name.
#[must_use]
pub fn wrong_ami_name(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || " ()[]./-'@_".contains(c);
    if let Some(odd) = name.chars().find(|c| !fits(*c)) {
        return Some(format!(
            "`{name}` holds `{odd}`: AMI names hold letters, digits, blanks and ( ) [ ] . / - ' @ _"
        ));
    }
    let (few, many) = (AMI.start(), AMI.end());
    (!AMI.contains(&name.len()))
        .then(|| format!("`{name}` has {} characters: AMI names have {few} to {many}", name.len()))
}

/// What is wrong with an AMI's description.
#[must_use]
pub fn wrong_description(text: &str) -> Option<String> {
    if text.chars().any(|c| !matches!(c, ' '..='~')) {
        return Some("it holds other characters than plain ASCII".to_owned());
    }
    let length = text.len();
    (length > DESCRIPTION).then(|| format!("it has {length} characters, at most {DESCRIPTION} are allowed"))
}

/// What is wrong with an SSM parameter's name.
#[must_use]
pub fn wrong_parameter_name(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
    if let Some(odd) = name.chars().find(|c| !fits(*c)) {
        return Some(format!("`{name}` holds `{odd}`: parameters' names hold letters, digits and `_.-/`"));
    }
    let length = name.len();
    (length == 0 || length > PARAMETER)
        .then(|| format!("it has {length} characters, 1 to {PARAMETER} are allowed"))
}
