//! The way to the Kubernetes API: by a kubeconfig, or by the service account of the pod that this is. And what an error of it
//! means for whoever runs weft.

use std::path::{Path, PathBuf};

use kube::{
    Client, Config,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;

use super::deadline::bounded;
use crate::net::chain;

/// How the API is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The kubeconfig; none for what `kubectl` would take, and in a pod its service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; none for its current one.
    pub context: Option<String>,
}

/// Why there is no way to the API.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum AccessError {
    #[error("read {}: {}", path.display(), mend(source))]
    Read { path: PathBuf, source: KubeconfigError },
    #[error("use the kubeconfig: {}", mend(.0))]
    Kubeconfig(#[source] KubeconfigError),
    /// Its text has the causes in it already.
    #[error(
        "no cluster is known: name one by --kubeconfig FILE or the variable KUBECONFIG, or run this in a pod with a service \
         account ({0})"
    )]
    Nowhere(Box<InferConfigError>),
    #[error("make a client of the Kubernetes API")]
    Client(#[source] Box<kube::Error>),
}

/// Makes a client whose questions have an end (`deadline`). Nothing is asked yet: whether somebody answers shows with the first
/// question.
///
/// # Errors
/// When there is no kubeconfig, and no service account, or they cannot be used.
pub async fn connect(access: &Access) -> Result<Client, AccessError> {
    let config = config(access).await?;
    let client = Client::try_from(config).map_err(|source| AccessError::Client(Box::new(source)))?;
    Ok(bounded(client))
}

async fn config(access: &Access) -> Result<Config, AccessError> {
    let options = KubeConfigOptions {
        context: access.context.clone(),
        ..KubeConfigOptions::default()
    };
    match &access.kubeconfig {
        Some(path) => {
            let file = read(path)?;
            let config = Config::from_custom_kubeconfig(file, &options).await;
            config.map_err(AccessError::Kubeconfig)
        }
        None if access.context.is_some() => {
            let config = Config::from_kubeconfig(&options).await;
            config.map_err(AccessError::Kubeconfig)
        }
        None => Config::infer()
            .await
            .map_err(|source| AccessError::Nowhere(Box::new(source))),
    }
}

fn read(path: &Path) -> Result<Kubeconfig, AccessError> {
    Kubeconfig::read_from(path).map_err(|source| AccessError::Read {
        path: path.to_owned(),
        source,
    })
}

fn mend(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::CurrentContextNotSet => {
            "it has no current context: choose one by --context, or by `kubectl config use-context`"
                .to_owned()
        }
        KubeconfigError::LoadContext(name) => {
            format!("it has no context {name:?}: `kubectl config get-contexts` lists them")
        }
        error => error.to_string(),
    }
}

/// What an error of the API means, in a line, with the mend where there is one.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => {
                "the API does not know who asks: are the kubeconfig's credentials, or the token, out of date?"
                    .to_owned()
            }
            403 => format!("{}: a role is missing", status.message),
            404 => format!("{}: is it installed, and is the name right?", status.message),
            _ => status.message.clone(),
        },
        kube::Error::HyperError(_) | kube::Error::Service(_) => format!(
            "the API does not answer ({}): is the kubeconfig the right one, and can its server be reached from here?",
            innermost(error)
        ),
        error => chain(error),
    }
}

fn innermost(error: &kube::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Whether an object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_is_wrong_with_a_kubeconfig_is_said() {
        let path = std::env::temp_dir().join(format!("weft-kubeconfig-{}", std::process::id()));
        let access = |context: &str| Access {
            kubeconfig: Some(path.clone()),
            context: Some(context.to_owned()).filter(|it| !it.is_empty()),
        };
        let said = async |access: &Access| match connect(access).await {
            Ok(_) => "connected".to_owned(),
            Err(error) => error.to_string(),
        };
        let missing = said(&access("")).await;
        assert!(
            missing.contains("weft-kubeconfig") && missing.contains("No such file"),
            "{missing}"
        );
        let text = "apiVersion: v1\nkind: Config\nclusters:\n- name: here\n  cluster: {server: \"http://127.0.0.1:1\"}\n\
                    contexts:\n- name: mine\n  context: {cluster: here, user: \"\"}\n";
        fs::write(&path, text).expect("write the file");
        let none = said(&access("")).await;
        assert!(none.contains("--context"), "{none}");
        let other = said(&access("other")).await;
        assert!(other.contains("no context \"other\""), "{other}");
        assert_eq!(said(&access("mine")).await, "connected");
        let client = connect(&access("mine")).await.expect("as before");
        let error = client
            .apiserver_version()
            .await
            .expect_err("nobody listens there");
        assert!(explain(&error).contains("does not answer"), "{}", explain(&error));
        fs::remove_file(&path).expect("remove the file");
    }
}
