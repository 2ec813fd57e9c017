//! The root of all certificates: a Secret that the controller makes where there is none, and the ConfigMap that says to
//! everybody whom to trust. Level-triggered: looked at again and again, so that a root that is replaced, or a ConfigMap
//! that somebody changes, is as it should be soon after.

use std::{collections::BTreeMap, path::Path, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use thiserror::Error;

use crate::{
    cluster::ROOT_CERT,
    mesh::TrustDomain,
    net::tls::TrustBundle,
    svid::{CertificateAuthority as _, LocalCa, LocalCaError},
};

/// How often it is looked at.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// Who we are to the API, where several write one object.
pub(super) const FIELD_MANAGER: &str = "weft-controller";
/// Keys of the Secret, as those of type `kubernetes.io/tls` have them.
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
/// More roots to be trusted: of what signed `tls.crt`, or before and after a change.
const MORE: &str = "ca.crt";

/// Where the root is kept.
#[derive(Clone, Debug)]
pub(super) struct RootPlace {
    /// The controller's namespace.
    pub(super) namespace: String,
    /// The Secret's name.
    pub(super) secret: String,
    /// The ConfigMap's name.
    pub(super) config_map: String,
    /// Of a root that is made.
    pub(super) trust_domain: TrustDomain,
}

/// Why there is no root.
#[derive(Debug, Error)]
pub(super) enum RootError {
    /// The API did not do what was asked.
    #[error("cannot {what}")]
    Api {
        /// What was to be done.
        what: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Secret has no such key.
    #[error("the Secret {secret} has no {key}: it needs tls.crt and tls.key, and may have ca.crt")]
    Missing {
        /// The Secret.
        secret: String,
        /// The key.
        key: &'static str,
    },
    /// What is in the Secret cannot be used.
    #[error("the Secret {secret} cannot be used")]
    Unusable {
        /// The Secret.
        secret: String,
        /// Why.
        #[source]
        source: LocalCaError,
    },
    /// No root can be made.
    #[error("a root cannot be made")]
    Make(#[source] LocalCaError),
    /// `ca.crt` holds no certificates.
    #[error("ca.crt of the Secret {secret} holds no certificates")]
    Roots {
        /// The Secret.
        secret: String,
        /// Why.
        #[source]
        source: crate::net::tls::TlsError,
    },
}

/// The root as it is at the moment.
#[derive(Debug)]
pub(super) struct Root {
    /// What signs.
    pub(super) ca: LocalCa,
    /// Whom to trust: its root, and what `ca.crt` says besides.
    pub(super) trust: TrustBundle,
    /// Changes with the Secret's content.
    pub(super) content: Vec<u8>,
}

impl RootPlace {
    /// The root that is there, or one that is made now. Two controllers that make one at once end with the same: the first that
    /// is stored.
    ///
    /// # Errors
    /// When the API fails, or what is stored cannot be used; each says what.
    pub(super) async fn read_or_make(&self, client: &Client) -> Result<Root, RootError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let failed = |what: &str| {
            let what = format!("{what} the Secret {}", self.name());
            move |source| RootError::Api {
                what,
                source: Box::new(source),
            }
        };
        if let Some(secret) = secrets.get_opt(&self.secret).await.map_err(failed("read"))? {
            return self.read(&secret);
        }
        match secrets.create(&PostParams::default(), &self.make()?).await {
            Ok(secret) => {
                tracing::info!(secret = self.name(), "a new root was made for the mesh");
                self.read(&secret)
            }
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.read(&secrets.get(&self.secret).await.map_err(failed("read"))?)
            }
            Err(error) => Err(failed("create")(error)),
        }
    }

    /// Says in the ConfigMap whom to trust. Whether it had to be written.
    ///
    /// # Errors
    /// When the API fails.
    pub(super) async fn publish(&self, client: &Client, root: &Root) -> Result<bool, RootError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
        let failed = |source| RootError::Api {
            what: format!("write the ConfigMap {}/{}", self.namespace, self.config_map),
            source: Box::new(source),
        };
        let pem = root.trust.to_pem();
        let there = maps.get_opt(&self.config_map).await.map_err(failed)?;
        let said = there.and_then(|map| map.data?.remove(ROOT_CERT));
        if said.as_ref() == Some(&pem) {
            return Ok(false);
        }
        let map = serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": self.config_map },
            "data": { ROOT_CERT: pem },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        maps.patch(&self.config_map, &params, &Patch::Apply(&map))
            .await
            .map_err(failed)?;
        Ok(true)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.secret)
    }

    fn make(&self) -> Result<Secret, RootError> {
        let (cert, key) = LocalCa::create(&self.trust_domain).map_err(RootError::Make)?;
        let data = [(CERT, cert.clone()), (KEY, key), (MORE, cert)];
        let data = data.map(|(name, pem)| (name.to_owned(), ByteString(pem.into_bytes())));
        Ok(Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".into()),
            data: Some(BTreeMap::from(data)),
            ..Secret::default()
        })
    }

    fn read(&self, secret: &Secret) -> Result<Root, RootError> {
        let secret_name = self.name();
        let value = |key| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .map(|it| &it.0)
        };
        let needed = |key| {
            value(key).ok_or_else(|| RootError::Missing {
                secret: secret_name.clone(),
                key,
            })
        };
        let (cert, key) = (needed(CERT)?, needed(KEY)?);
        let unusable = |source| RootError::Unusable {
            secret: secret_name.clone(),
            source,
        };
        let of =
            |chain: &[u8]| LocalCa::from_pem(chain, key, Path::new(CERT), Path::new(KEY)).map_err(unusable);
        let mut ca = of(cert)?;
        let more = value(MORE).filter(|pem| !pem.is_empty());
        let mut trust = ca.trust();
        if let Some(pem) = more {
            let more = TrustBundle::from_pem(pem).map_err(|source| RootError::Roots {
                secret: secret_name.clone(),
                source,
            })?;
            // An intermediate is not to be trusted by itself, and has to be sent along: it is replaced more often than its root.
            if more.merged(&trust).len() > more.len() {
                ca = of(&[cert.as_slice(), b"\n", pem].concat())?;
            }
            trust = ca.trust().merged(&more);
        }
        let content = [cert.as_slice(), key, value(MORE).map_or(&[][..], |it| it)].concat();
        Ok(Root { ca, trust, content })
    }
}
