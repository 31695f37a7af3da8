//! Where IAM Identity Center is asked. The SDK's own provider makes the two requests and knows nothing of `--endpoint` and of a
//! profile's addresses, so they are led there on their way out. Neither is signed: the token in them is all that counts.

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use crate::aws::endpoint::Endpoints;

/// What credentials are asked for by.
const CREDENTIALS: &str = "/federation/credentials";
/// What a token is prolonged by.
const TOKEN: &str = "/token";

/// A client whose requests to IAM Identity Center go where `endpoints` says.
pub(super) fn client(http: SharedHttpClient, endpoints: &Endpoints) -> SharedHttpClient {
    let to = [(CREDENTIALS, endpoints.of("sso")), (TOKEN, endpoints.of("sso_oidc"))];
    SharedHttpClient::new(Led { http, to })
}

type Addresses = [(&'static str, Option<String>); 2];

#[derive(Debug)]
struct Led {
    http: SharedHttpClient,
    to: Addresses,
}

#[derive(Debug)]
struct LedConnector {
    connector: SharedHttpConnector,
    to: Addresses,
}

impl HttpClient for Led {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connector = self.http.http_connector(settings, components);
        SharedHttpConnector::new(LedConnector { connector, to: self.to.clone() })
    }
}

impl HttpConnector for LedConnector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        if let Some(address) = led(request.uri(), &self.to)
            && request.set_uri(address.as_str()).is_err()
        {
            tracing::warn!("{address} is no address: the request goes to its usual one");
        }
        self.connector.call(request)
    }
}

/// The other address of a request, if it has one.
fn led(uri: &str, to: &Addresses) -> Option<String> {
    let path = uri.split(['?', '#']).next().unwrap_or(uri);
    let (name, base) = to.iter().find(|(name, _)| path.ends_with(name))?;
    let rest = &uri[path.len() - name.len()..];
    Some(format!("{}{rest}", base.as_ref()?.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_led() {
        let to = [(CREDENTIALS, Some("http://a:1/".to_owned())), (TOKEN, None)];
        let led = |uri| led(uri, &to).unwrap_or_default();
        let usual =
            "https://portal.sso.eu-west-1.amazonaws.com/federation/credentials?account_id=1&role_name=a%2Fb";
        assert_eq!(led(usual), "http://a:1/federation/credentials?account_id=1&role_name=a%2Fb");
        assert_eq!(led("https://oidc.eu-west-1.amazonaws.com/token"), "");
        assert_eq!(led("https://elsewhere/other?x=/federation/credentials"), "");
    }
}
