//! How a waypoint is to be deployed, as its Gateway says: annotations, `spec.infrastructure`, `spec.addresses`. What of it cannot
//! be done is a fault, and nothing is deployed for a Gateway that has one.

use std::net::IpAddr;

use serde_json::Value;

use super::namespace::annotation;
use crate::{
    cluster::{labels, objects::Custom},
    manifests::{Labels, Reader, Severity, there},
    mesh::{Place, values},
};

/// The most pods of one waypoint.
const MOST_REPLICAS: u32 = 1000;
/// The most listeners that are read; the Gateway API has no more.
const MOST_LISTENERS: usize = 64;
/// The longest name that a Service may have.
const LONGEST_NAME: usize = 63;

/// How a waypoint is to be deployed. What is not said is left to the installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaypointWishes {
    /// How many pods.
    pub replicas: Option<u32>,
    /// At least and at most so many, where their number follows the load.
    pub scale: Option<(Option<u32>, u32)>,
    /// The CPU that each asks for, as Kubernetes writes it.
    pub cpu: Option<String>,
    /// The memory that each asks for, and may have.
    pub memory: Option<String>,
    /// Labels for everything that is made.
    pub labels: Labels,
    /// Annotations for everything that is made.
    pub annotations: Labels,
    /// The address of its Service.
    pub address: Option<IpAddr>,
    /// Its listeners, as far as they have a name.
    pub listeners: Vec<Listener>,
    /// Why nothing can be deployed.
    pub fault: Option<Fault>,
}

/// A Gateway's listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Whether it speaks HBONE, which is all that a waypoint does.
    pub is_hbone: bool,
}

/// Why a Gateway is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// As the Gateway API has it, for example `UnsupportedAddress`.
    pub reason: &'static str,
    /// What is wrong, and the mend.
    pub message: String,
}

/// Reads them.
pub(super) fn read(object: &Custom, reader: &mut Reader<'_>) -> WaypointWishes {
    let mut reading = Reading { reader, fault: None };
    let (labels, annotations) = reading.infrastructure(object);
    let wishes = WaypointWishes {
        replicas: reading.annotation(object, labels::WAYPOINT_REPLICAS, replicas),
        scale: reading.scale(object),
        cpu: reading.annotation(object, labels::WAYPOINT_CPU, quantity),
        memory: reading.annotation(object, labels::WAYPOINT_MEMORY, quantity),
        labels,
        annotations,
        address: reading.address(object),
        listeners: reading.listeners(object),
        fault: None,
    };
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if name.len() > LONGEST_NAME
        || name.contains('.')
        || !name.starts_with(|it: char| it.is_ascii_lowercase())
    {
        let message = format!(
            "metadata.name: no Service can have it: at most {LONGEST_NAME} letters, digits and dashes, a letter first"
        );
        reading.fault("Invalid", message);
    }
    WaypointWishes {
        fault: reading.fault,
        ..wishes
    }
}

struct Reading<'r, 'd> {
    reader: &'r mut Reader<'d>,
    /// The first.
    fault: Option<Fault>,
}

impl Reading<'_, '_> {
    fn fault(&mut self, reason: &'static str, message: String) {
        self.reader.tell(Severity::Error, reason, message.clone());
        self.fault.get_or_insert(Fault { reason, message });
    }

    fn annotation<T>(
        &mut self,
        object: &Custom,
        key: &str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = annotation(object.metadata.annotations.as_ref(), key)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault("InvalidParameters", format!("annotation {key}: {message}"));
                None
            }
        }
    }

    fn scale(&mut self, object: &Custom) -> Option<(Option<u32>, u32)> {
        let least = self.annotation(object, labels::WAYPOINT_MIN_REPLICAS, replicas);
        let most = self.annotation(object, labels::WAYPOINT_MAX_REPLICAS, replicas);
        match (least, most) {
            (None, None) => None,
            (Some(_), None) => {
                let message = format!(
                    "annotation {}: says nothing without {}: add that",
                    labels::WAYPOINT_MIN_REPLICAS,
                    labels::WAYPOINT_MAX_REPLICAS
                );
                self.fault("InvalidParameters", message);
                None
            }
            (Some(least), Some(most)) if least > most => {
                let message = format!(
                    "annotation {}: is more than {}: make it less",
                    labels::WAYPOINT_MIN_REPLICAS,
                    labels::WAYPOINT_MAX_REPLICAS
                );
                self.fault("InvalidParameters", message);
                None
            }
            (least, Some(most)) => Some((least, most)),
        }
    }

    fn infrastructure(&mut self, object: &Custom) -> (Labels, Labels) {
        let Some(infrastructure) = there(&object.spec, "infrastructure") else {
            return Default::default();
        };
        let place = Place::ROOT.field("spec");
        let place = place.field("infrastructure");
        if there(infrastructure, "parametersRef").is_some() {
            let message = format!(
                "{}: is not supported: use the annotations weft.dev/waypoint-...",
                place.field("parametersRef")
            );
            self.fault("InvalidParameters", message);
        }
        let mut texts = |field: &str| {
            let value = there(infrastructure, field)?;
            self.reader.labels(value, &place.field(field))
        };
        let all = (
            texts("labels").unwrap_or_default(),
            texts("annotations").unwrap_or_default(),
        );
        for (key, value) in &all.0 {
            if let Err(message) = values::label_value(value) {
                self.fault(
                    "InvalidParameters",
                    format!("{}.{key}: {message}", place.field("labels")),
                );
            }
        }
        all
    }

    fn address(&mut self, object: &Custom) -> Option<IpAddr> {
        let place = Place::ROOT.field("spec");
        let addresses = self.reader.list(&object.spec, "addresses", &place);
        let place = place.field("addresses");
        let first = addresses.first()?;
        if addresses.len() > 1 {
            self.fault(
                "UnsupportedAddress",
                format!("{place}: a waypoint can be given one: leave one"),
            );
            return None;
        }
        let text = |field: &str| there(first, field).and_then(Value::as_str);
        if text("type").unwrap_or("IPAddress") != "IPAddress" {
            let message = format!("{place}: must be of type IPAddress: an address of the cluster's services");
            self.fault("UnsupportedAddress", message);
            return None;
        }
        // Of this type, whichever is free.
        let value = text("value").filter(|value| !value.is_empty())?;
        match values::address(value) {
            Ok(address) => Some(address),
            Err(message) => {
                self.fault("UnsupportedAddress", format!("{place}: {message}"));
                None
            }
        }
    }

    fn listeners(&mut self, object: &Custom) -> Vec<Listener> {
        let place = Place::ROOT.field("spec");
        let listeners = self.reader.list(&object.spec, "listeners", &place);
        let text = |it: &Value, field: &str| there(it, field).and_then(Value::as_str).map(str::to_owned);
        let is_hbone = |it: &Value| text(it, "protocol").as_deref() == Some("HBONE");
        let listeners = listeners.get(..MOST_LISTENERS).unwrap_or(listeners);
        if !listeners.iter().any(is_hbone) {
            // Its reader has been told already.
            let message =
                "spec.listeners: has no listener with protocol HBONE: add one with port 15008".to_owned();
            self.fault.get_or_insert(Fault {
                reason: "ListenersNotValid",
                message,
            });
        }
        let read = listeners.iter().filter_map(|it| {
            Some(Listener {
                name: text(it, "name")?,
                is_hbone: is_hbone(it),
            })
        });
        read.collect()
    }
}

fn replicas(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if (1..=MOST_REPLICAS).contains(&count) => Ok(count),
        _ => Err(format!("must be a number from 1 to {MOST_REPLICAS}")),
    }
}

/// A quantity of Kubernetes, in the forms that are used for CPU and memory.
fn quantity(text: &str) -> Result<String, String> {
    const UNITS: [&str; 12] = ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "P", "Pi"];
    let digits = text
        .find(|it: char| !it.is_ascii_digit() && it != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let is_number = number.len() < 16 && number.parse::<f64>().is_ok_and(|it| it > 0.0);
    match is_number && UNITS.contains(&unit) {
        true => Ok(text.to_owned()),
        false => Err("must be a quantity, for example 250m or 128Mi".to_owned()),
    }
}
