//! Templates of names: `{version}` and its like, filled in.

/// The fields that a template may hold.
pub const FIELDS: [&str; 6] = ["name", "version", "date", "digest", "arch", "region"];

/// What the fields stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The system's name.
    pub name: String,
    /// The system's version.
    pub version: String,
    /// Day of the newest locked release, as in `20260912`.
    pub date: String,
    /// The first twelve digits of the digest of the image's blocks.
    pub digest: String,
    /// Debian's name of the architecture.
    pub arch: String,
    /// The region's name.
    pub region: String,
}

impl Facts {
    fn get(&self, field: &str) -> Option<&str> {
        Some(match field {
            "name" => &self.name,
            "version" => &self.version,
            "date" => &self.date,
            "digest" => &self.digest,
            "arch" => &self.arch,
            "region" => &self.region,
            _ => return None,
        })
    }
}

/// A template that can't be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It names a field that there isn't.
    #[error("`{{{0}}}` is no field of a template: there are {fields}", fields = FIELDS.map(|f| format!("{{{f}}}")).join(", "))]
    Unknown(String),
    /// A brace has no partner.
    #[error("a `{0}` has no partner: fields are written as in {{version}}")]
    Brace(char),
}

/// `template` with its fields filled in. What a field holds isn't looked at again.
///
/// # Errors
/// [`TemplateError`] for a field that there isn't, or a lone brace.
pub fn expand(template: &str, facts: &Facts) -> Result<String, TemplateError> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let inside = from.strip_prefix('{').ok_or(TemplateError::Brace('}'))?;
        let (field, after) = inside.split_once('}').ok_or(TemplateError::Brace('{'))?;
        out.push_str(facts.get(field).ok_or_else(|| TemplateError::Unknown(field.to_owned()))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts() -> Facts {
        Facts {
            name: "web".into(),
            version: "1.2".into(),
            date: "20260912".into(),
            digest: "0123456789ab".into(),
            arch: "amd64".into(),
            region: "eu-central-1".into(),
        }
    }

    #[test]
    fn fields_are_filled_in_once() {
        let all = FIELDS.map(|f| format!("{{{f}}}")).join("/");
        assert_eq!(expand(&all, &facts()).unwrap(), "web/1.2/20260912/0123456789ab/amd64/eu-central-1");
        let odd = Facts { name: "{version}".into(), ..facts() };
        assert_eq!(expand("{name}", &odd).unwrap(), "{version}");
        assert_eq!(expand("", &facts()).unwrap(), "");
    }

    #[test]
    fn what_is_no_template_is_named() {
        let refused = |text: &str| expand(text, &facts()).unwrap_err().to_string();
        assert_eq!(
            refused("{nmae}"),
            "`{nmae}` is no field of a template: there are {name}, {version}, {date}, {digest}, {arch}, {region}"
        );
        assert_eq!(refused("a}"), "a `}` has no partner: fields are written as in {version}");
        assert_eq!(refused("a{name"), "a `{` has no partner: fields are written as in {version}");
        assert_eq!(expand("{{name}}", &facts()), Err(TemplateError::Unknown("{name".into())));
    }

    proptest! {
        #[test]
        fn text_without_braces_stays(text in "[^{}]{0,40}") {
            prop_assert_eq!(expand(&text, &facts()).unwrap(), text);
        }

        #[test]
        fn nothing_panics(text in "[{}a-z]{0,20}") {
            let _ = expand(&text, &facts());
        }
    }
}
