//! The HTTP clients that all SDK clients share, and what every one of them is configured with.

use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::app_name::AppName;
use aws_types::region::Region;

use super::trust::Trust;

/// Long enough for a slow network, short enough to be tried again within an attempt's deadline.
const CONNECT: Duration = Duration::from_secs(8);

/// A download that stands still for so long has failed. Attempts have deadlines besides.
const STALLED: Duration = Duration::from_secs(20);

/// A client for AWS that believes the host's certificate authorities: see [`trusting`].
#[must_use]
pub fn client() -> SharedHttpClient {
    trusting(&Trust::default())
}

/// A client for AWS: rustls with ring, by the proxy that HTTPS_PROXY and its kin name.
#[must_use]
pub fn trusting(trust: &Trust) -> SharedHttpClient {
    let store = trust.store();
    Builder::new().build_with_connector_fn(move |settings, components| {
        let context =
            TlsContext::builder().with_trust_store(store.clone()).build().expect("nothing can fail");
        let mut connector = Connector::builder()
            .tls_provider(tls())
            .tls_context(context)
            .proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|c| c.sleep_impl()));
        connector.build()
    })
}

/// A client for what hands out credentials on the same host or link: no proxy stands between.
#[must_use]
pub fn local_client() -> SharedHttpClient {
    Builder::new().tls_provider(tls()).build_https()
}

fn tls() -> Provider {
    Provider::Rustls(CryptoMode::Ring)
}

/// What every client is configured with: no retries of its own ([`super::retry`] does them), no cache of identities
/// ([`super::credentials`] has one).
#[must_use]
pub fn config(
    region: &str,
    http: &SharedHttpClient,
    credentials: Option<SharedCredentialsProvider>,
) -> SdkConfig {
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(http.clone())
        .retry_config(RetryConfig::disabled())
        .identity_cache(aws_config::identity::IdentityCache::no_cache())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled()
                .upload_enabled(false)
                .download_enabled(true)
                .grace_period(STALLED)
                .build(),
        );
    config.set_app_name(AppName::new("kiln").ok());
    config.set_credentials_provider(credentials);
    config.build()
}
