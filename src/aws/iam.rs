//! Which permission of IAM a call needs. Most are spelled as the call is; S3's often aren't.

use super::error::Call;

/// The permission that `call` needs; `None` where AWS asks for none.
#[must_use]
pub fn permission(call: Call<'_>) -> Option<String> {
    let action = match (call.service, call.operation) {
        // Whoever may sign at all may ask who they are; a web identity comes before any caller.
        (_, "") | ("sts", "GetCallerIdentity" | "AssumeRoleWithWebIdentity") => return None,
        ("s3", "HeadBucket") => "ListBucket",
        ("s3", "HeadObject") => "GetObject",
        ("s3", "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload") => "PutObject",
        ("s3", "ListMultipartUploads") => "ListBucketMultipartUploads",
        ("s3", "ListParts") => "ListMultipartUploadParts",
        (_, operation) => operation,
    };
    Some(format!("{}:{action}", call.service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_iams() {
        for (service, operation, needed) in [
            ("ec2", "RegisterImage", Some("ec2:RegisterImage")),
            ("ebs", "PutSnapshotBlock", Some("ebs:PutSnapshotBlock")),
            ("s3", "UploadPart", Some("s3:PutObject")),
            ("s3", "HeadBucket", Some("s3:ListBucket")),
            ("sts", "AssumeRole", Some("sts:AssumeRole")),
            ("sts", "GetCallerIdentity", None),
            ("sso", "", None),
        ] {
            assert_eq!(permission(Call::new(service, operation, "")).as_deref(), needed, "{operation}");
        }
    }
}
