//! Objects from before this run, until they are compared with what is wanted: kept as text and without what is not compared,
//! since after a start there are as many as there are mirrors, all at once. Pure.

use serde_json::{Map, Value};

/// One object.
#[derive(Debug)]
pub(super) struct Found(Box<[u8]>);

impl Found {
    /// What of an object is compared.
    pub(super) fn new(object: &Value) -> Self {
        let pick = |from: &Value, fields: &[&str]| -> Map<String, Value> {
            let field = |field: &&str| Some(((*field).to_owned(), from.get(*field)?.clone()));
            fields.iter().filter_map(field).collect()
        };
        let mut kept = pick(object, &["spec", "addressType", "endpoints", "ports"]);
        if let Some(metadata) = object.get("metadata") {
            let metadata = pick(metadata, &["name", "namespace", "labels", "annotations"]);
            kept.insert("metadata".to_owned(), Value::Object(metadata));
        }
        // Of imports, which clusters are behind them, and whether they are ready.
        if let Some(status) = object.get("status") {
            kept.insert("status".to_owned(), Value::Object(pick(status, &["clusters", "conditions"])));
        }
        Self(Value::Object(kept).to_string().into_bytes().into_boxed_slice())
    }

    /// The same as an object.
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_compared_is_kept_and_nothing_else() {
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}, "annotations": {"c": "d"}, "uid": "1"},
            "spec": {"ports": [{"port": 80}]},
            "status": {"loadBalancer": {}, "clusters": [{"cluster": "west"}]},
        });
        let kept = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {"ports": [{"port": 80}]},
            "status": {"clusters": [{"cluster": "west"}]},
        });
        assert_eq!(Found::new(&object).value(), kept);
        let slice =
            json!({"metadata": {"name": "web"}, "addressType": "IPv4", "endpoints": [], "ports": [{"port": 80}]});
        assert_eq!(Found::new(&slice).value(), slice);
    }
}
