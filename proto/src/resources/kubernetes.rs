//! Rules for Kubernetes' own kinds that an API server would check, and on a site nobody else does.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{FieldError, PROXY_PROTOCOL_ANNOTATION, SERVICE_NAME_LABEL, ServiceExport};
use crate::exchange::{MAX_ENDPOINTS, MAX_NAME_LEN, MAX_PORTS, Protocol};
use crate::names::{EndpointName, PortName, ServiceName};

/// The most addresses of one endpoint, as in Kubernetes.
const MAX_ADDRESSES: usize = 100;

pub(super) fn service(service: &Service) -> Result<(), FieldError> {
    let Some(spec) = &service.spec else {
        return Err(FieldError::new("spec", "is missing: a Service needs at least its ports"));
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    at_most("spec.ports", ports.len(), MAX_PORTS)?;
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        port_number(&field("port"), port.port)?;
        let protocol = protocol(&field("protocol"), port.protocol.as_deref())?;
        app_protocol(&field("appProtocol"), port.app_protocol.as_deref())?;
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                let message = "is missing: a Service with several ports names each of them";
                return Err(FieldError::new(field("name"), message));
            }
        } else {
            PortName::parse(name).map_err(|error| FieldError::new(field("name"), error.to_string()))?;
        }
        if !names.insert(name) {
            return Err(FieldError::new(field("name"), format!("`{name}` comes twice: give each port its own name")));
        }
        if !seen.insert((port.port, protocol)) {
            let message = format!("{} {} comes twice: list each port once", port.port, protocol.as_str());
            return Err(FieldError::new(field("port"), message));
        }
    }
    Ok(())
}

pub(super) fn endpoint_slice(slice: &EndpointSlice) -> Result<(), FieldError> {
    let label = format!("metadata.labels[\"{SERVICE_NAME_LABEL}\"]");
    let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL)) else {
        return Err(FieldError::new(label, "is missing: name the Service that these endpoints belong to"));
    };
    ServiceName::parse(service).map_err(|error| FieldError::new(label, error.to_string()))?;
    let ports = slice.ports.as_deref().unwrap_or_default();
    at_most("ports", ports.len(), MAX_PORTS)?;
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("ports[{index}].{name}");
        if let Some(number) = port.port {
            port_number(&field("port"), number)?;
        }
        protocol(&field("protocol"), port.protocol.as_deref())?;
        app_protocol(&field("appProtocol"), port.app_protocol.as_deref())?;
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            PortName::parse(name).map_err(|error| FieldError::new(field("name"), error.to_string()))?;
        }
    }
    at_most("endpoints", slice.endpoints.len(), MAX_ENDPOINTS)?;
    let is_address: fn(&str) -> bool = match slice.address_type.as_str() {
        "IPv4" => |text| text.parse::<Ipv4Addr>().is_ok(),
        "IPv6" => |text| text.parse::<Ipv6Addr>().is_ok(),
        other => {
            let message = format!("`{other}` is not served: write IPv4 or IPv6, with IP addresses as endpoints");
            return Err(FieldError::new("addressType", message));
        }
    };
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let field = |name: &str| format!("endpoints[{index}].{name}");
        if endpoint.addresses.is_empty() {
            return Err(FieldError::new(field("addresses"), "is empty: an endpoint has at least one address"));
        }
        at_most(&field("addresses"), endpoint.addresses.len(), MAX_ADDRESSES)?;
        if let Some(bad) = endpoint.addresses.iter().position(|address| !is_address(address)) {
            let address: String = endpoint.addresses[bad].chars().take(80).collect();
            let message = format!("`{address}` is not an {} address", slice.address_type);
            return Err(FieldError::new(format!("endpoints[{index}].addresses[{bad}]"), message));
        }
        if let Some(host) = &endpoint.hostname {
            EndpointName::parse(host).map_err(|error| FieldError::new(field("hostname"), error.to_string()))?;
        }
    }
    Ok(())
}

pub(super) fn service_export(export: &ServiceExport) -> Result<(), FieldError> {
    // A misspelt wish for identity must not quietly mean "no identity".
    match export.metadata.annotations.as_ref().and_then(|found| found.get(PROXY_PROTOCOL_ANNOTATION)) {
        None => Ok(()),
        Some(version) if version == "v2" => Ok(()),
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            let field = format!("metadata.annotations[\"{PROXY_PROTOCOL_ANNOTATION}\"]");
            Err(FieldError::new(field, format!("`{other}` is not known: write v2, or leave the annotation out")))
        }
    }
}

fn port_number(field: &str, port: i32) -> Result<(), FieldError> {
    match port {
        1..=65535 => Ok(()),
        other => Err(FieldError::new(field, format!("{other} is not a port: use 1 to 65535"))),
    }
}

fn protocol(field: &str, text: Option<&str>) -> Result<Protocol, FieldError> {
    let text = text.unwrap_or("TCP");
    Protocol::from_kubernetes(text).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        FieldError::new(field, format!("`{shown}` is not one of TCP, UDP, SCTP"))
    })
}

fn app_protocol(field: &str, text: Option<&str>) -> Result<(), FieldError> {
    let Some(text) = text else { return Ok(()) };
    let good = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/'));
    if good && !text.is_empty() && text.len() <= MAX_NAME_LEN {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    let message = format!("`{shown}` is not an appProtocol: write a name such as http, grpc, tcp or kubernetes.io/h2c");
    Err(FieldError::new(field, message))
}

fn at_most(field: &str, count: usize, max: usize) -> Result<(), FieldError> {
    if count > max { Err(FieldError::new(field, format!("{count} of them, at most {max} are served"))) } else { Ok(()) }
}
