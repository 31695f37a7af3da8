//! A local AWS for one test: `scripts/aws-local` on a port of its own, for as long as the value lives.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use kiln::aws::http;
use serde_json::Value;

/// A running server.
pub struct Local {
    server: Child,
    url: String,
    runtime: tokio::runtime::Runtime,
    /// Connections are kept: a client of its own for each request would leave thousands behind.
    control: ureq::Agent,
}

/// Clients of one region, with keys that the server takes for those of account 123456789012.
pub struct Clients {
    pub ebs: aws_sdk_ebs::Client,
    pub ec2: aws_sdk_ec2::Client,
    pub s3: aws_sdk_s3::Client,
}

impl Local {
    /// Starts one; it ends with the test, however that ends.
    pub fn start() -> Local {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/aws-local");
        let mut server = Command::new(script)
            .args(["--port", "0", "--with-parent"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/aws-local");
        let mut line = String::new();
        let mut output = BufReader::new(server.stdout.take().unwrap());
        output.read_line(&mut line).expect("the server's URL");
        let url = line.trim().trim_end_matches('/').to_owned();
        assert!(url.starts_with("http://"), "scripts/aws-local said {line:?}");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let control =
            ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).build().into();
        Local { server, url, runtime, control }
    }

    /// Where it listens: what AWS_ENDPOINT_URL is to say.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs to its end what is asynchronous.
    pub fn run<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    /// Adds rules of faults: see `tests/aws/faults.py`.
    pub fn faults(&self, rules: &Value) {
        self.post("faults", rules);
    }

    /// Changes settings: see `tests/aws/settings.py`.
    pub fn settings(&self, changes: &Value) {
        self.post("settings", changes);
    }

    /// No more faults.
    pub fn clear(&self) {
        self.control.delete(self.at("faults")).call().expect("faults are cleared");
    }

    /// Everything there is.
    pub fn state(&self) -> Value {
        self.get("state")
    }

    /// How often an operation was called.
    pub fn count(&self, operation: &str) -> usize {
        let counts = self.get(&format!("count?operation={operation}"));
        counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap() as usize).sum()
    }

    /// How many snapshots there are in a region.
    pub fn snapshots(&self, region: &str) -> usize {
        let state = self.state();
        let places = state["places"].as_array().unwrap().iter().filter(|place| place["region"] == region);
        places.filter_map(|place| Some(place["snapshots"].as_array()?.len())).sum()
    }

    fn at(&self, path: &str) -> String {
        format!("{}/_kiln/{path}", self.url)
    }

    /// A control call that asks; `path` is what follows `/_kiln/`.
    pub fn get(&self, path: &str) -> Value {
        let mut answer = self.control.get(self.at(path)).call().expect(path);
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    }

    /// A control call; `path` is what follows `/_kiln/`.
    pub fn post(&self, path: &str, value: &Value) {
        self.control
            .post(self.at(path))
            .send(value.to_string())
            .unwrap_or_else(|e| panic!("{path} {value}: {e}"));
    }

    /// Clients of a region.
    pub fn clients(&self, region: &str) -> Clients {
        let keys = Credentials::new("AKIATEST", "secret", None, None, "test");
        let mut config =
            http::config(region, &http::client(), Some(SharedCredentialsProvider::new(keys))).into_builder();
        config.set_endpoint_url(Some(self.url.clone()));
        let config = config.build();
        let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
        Clients {
            ebs: aws_sdk_ebs::Client::new(&config),
            ec2: aws_sdk_ec2::Client::new(&config),
            s3: aws_sdk_s3::Client::from_conf(s3),
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
