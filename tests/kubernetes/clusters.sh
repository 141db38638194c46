# Two whole Kubernetes clusters with identical pod and service networks side by side, for scripts that source this file:
# the networks, the components, and what a kubelet would tell the API servers. `here` is the folder of this file, `name`
# what the script is called.

# Everything is local; a proxy of the surroundings would be asked for the API server.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

readonly POD_CIDR=10.244.0.0/16 NODE_POD_CIDR=10.244.0.0/24 POD_GATEWAY=10.244.0.1
readonly SERVICE_CIDR=10.96.0.0/16 API_IP=10.96.0.1 DNS_IP=10.96.0.10
readonly LINK_PORT=30443 # the UDP NodePort that joins the clusters
declare -A NODE_IP=([a]=192.0.2.2 [b]=198.51.100.2)

bin="$("$here/build")"
run="$(mktemp -d /tmp/linkspan-$name.XXXXXX)"
prefix="ls$$"
pids="$run/pids"
: > "$pids"

say() { printf '%6.2f s  %s\n' "$(since "$begin")" "$*"; }
now() { date +%s%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { print (b - a) / 1e9 }'; }
fail() { echo "$name: FAILED: $*" >&2; exit 1; }

cleanup() {
  local status=$? pid namespace
  trap - EXIT
  while read -r pid; do kill -KILL "$pid" 2>/dev/null || true; done < "$pids"
  wait 2>/dev/null || true
  for namespace in $(ip netns list | awk '{print $1}' | grep "^$prefix-" || true); do
    ip netns delete "$namespace"
    rm -rf "/etc/netns/$namespace"
  done
  rmdir /etc/netns 2>/dev/null || true
  if [ "$status" != 0 ] || [ -n "${SMOKE_KEEP:-}" ]; then echo "$name: logs are in $run" >&2; else rm -rf "$run"; fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 124' TERM INT

# spawn LOG COMMAND...: runs it in the background, known by its process id.
spawn() {
  local log="$1"; shift
  "$@" > "$log" 2>&1 < /dev/null &
  echo $! >> "$pids"
  spawned=$!
}

# until_true SECONDS WHAT COMMAND...: repeats the command until it succeeds.
until_true() {
  local deadline=$((SECONDS + $1)) what="$2"; shift 2
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "$what: still not so: $*"
    sleep 0.1
  done
}

in_ns() { local name="$1"; shift; ip netns exec "$prefix-$name" "$@"; }

# ---- networks -------------------------------------------------------------------------------------------------------

new_ns() {
  ip netns add "$prefix-$1"
  in_ns "$1" ip link set lo up
}

# The network between the clusters: forwards the link's UDP port and nothing else, and has no route to any pod.
underlay() {
  new_ns net
  in_ns net sysctl -qw net.ipv4.ip_forward=1
  in_ns net nft -f - <<NFT
table inet between {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    udp dport $LINK_PORT accept
  }
}
NFT
}

# node CLUSTER: the namespace of the cluster's only node, joined to the network between.
node() {
  local c="$1" gateway="${NODE_IP[$1]%.*}.1"
  new_ns "$c"
  ip link add name "to-$c" netns "$prefix-net" type veth peer name eth0 netns "$prefix-$c"
  in_ns net ip addr add "$gateway/24" dev "to-$c"
  in_ns net ip link set "to-$c" up
  in_ns "$c" ip addr add "${NODE_IP[$c]}/24" dev eth0
  in_ns "$c" ip link set eth0 up
  in_ns "$c" ip route add default via "$gateway"
  in_ns "$c" sysctl -qw net.ipv4.ip_forward=1
  # What a network plugin does: pods leave the node under its address.
  in_ns "$c" nft -f - <<NFT
table ip pods {
  chain leaving {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr $POD_CIDR ip daddr != $POD_CIDR oifname "eth0" masquerade
  }
}
NFT
}

# pod CLUSTER NAME ADDRESS: a pod's namespace, routed by its own veth (as the ptp network plugin does it). No bridge:
# across one, the answer of a pod on the same node would not pass the node's address translation.
pod() {
  local c="$1" name="$2" address="$3"
  new_ns "$c-$name"
  ip link add name "p-$name" netns "$prefix-$c" type veth peer name eth0 netns "$prefix-$c-$name"
  in_ns "$c" ip addr add "$POD_GATEWAY/32" dev "p-$name"
  in_ns "$c" ip link set "p-$name" up
  in_ns "$c" ip route add "$address/32" dev "p-$name"
  in_ns "$c-$name" ip addr add "$address/32" dev eth0
  in_ns "$c-$name" ip link set eth0 up
  in_ns "$c-$name" ip route add "$POD_GATEWAY/32" dev eth0 scope link
  in_ns "$c-$name" ip route add default via "$POD_GATEWAY"
  mkdir -p "/etc/netns/$prefix-$c-$name"
  printf 'nameserver %s\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n' "$DNS_IP" \
    > "/etc/netns/$prefix-$c-$name/resolv.conf"
}

# ---- what a kubelet would tell the API server -----------------------------------------------------------------------

kubectl() { local c="$1"; shift; in_ns "$c" "$bin" kubectl --kubeconfig "$run/$c/admin.conf" --cache-dir "$run/$c/cache" "$@"; }

node_object() {
  cat <<YAML
apiVersion: v1
kind: Node
metadata: {name: node, labels: {kubernetes.io/hostname: node, kubernetes.io/os: linux}}
spec: {podCIDR: $NODE_POD_CIDR, podCIDRs: [$NODE_POD_CIDR]}
status:
  addresses: [{type: InternalIP, address: ${NODE_IP[$1]}}, {type: Hostname, address: node}]
  conditions: [{type: Ready, status: "True", reason: KubeletReady}]
YAML
}

# pod_object CLUSTER NAMESPACE NAME LABEL ADDRESS [SERVICEACCOUNT]: the object, then its status: running and ready.
pod_object() {
  local c="$1" namespace="$2" name="$3" label="$4" address="$5" account="${6:-default}"
  until_true 20 "service account $account" kubectl "$c" -n "$namespace" get serviceaccount "$account"
  kubectl "$c" create -f - <<YAML > /dev/null
apiVersion: v1
kind: Pod
metadata: {name: $name, namespace: $namespace, labels: {$label}}
spec:
  nodeName: node
  serviceAccountName: $account
  containers: [{name: main, image: none}]
YAML
  kubectl "$c" -n "$namespace" patch pod "$name" --subresource=status --type=merge -p '{"status": {"phase": "Running",
    "hostIP": "'"${NODE_IP[$c]}"'", "podIP": "'"$address"'", "podIPs": [{"ip": "'"$address"'"}],
    "startTime": "'"$(date -u +%FT%TZ)"'", "conditions": [
      {"type": "PodScheduled", "status": "True"}, {"type": "Initialized", "status": "True"},
      {"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "True"}]}}' > /dev/null
}

# in_pod CLUSTER NAMESPACE NAME ACCOUNT: starts the rest of the arguments as the pod's process, with the pod's own
# token and CA where in-cluster clients look for them.
in_pod() {
  local c="$1" namespace="$2" name="$3" account="$4" secrets; shift 4
  secrets="$run/$c/secrets-$name"
  mkdir -p "$secrets"
  kubectl "$c" -n "$namespace" create token "$account" --bound-object-kind Pod --bound-object-name "$name" > "$secrets/token"
  cp "$run/$c/ca.crt" "$secrets/ca.crt"
  printf %s "$namespace" > "$secrets/namespace"
  spawn "$run/$c/$name.log" ip netns exec "$prefix-$c-$name" unshare --mount sh -ec '
    from="$1"; shift
    mount --bind "$from" /mnt
    mount -t tmpfs tmpfs /run
    mkdir -p /run/secrets/kubernetes.io/serviceaccount
    mount --bind /mnt /run/secrets/kubernetes.io/serviceaccount
    export KUBERNETES_SERVICE_HOST='"$API_IP"' KUBERNETES_SERVICE_PORT=443
    exec "$@"' sh "$secrets" "$@"
}

# ---- components -----------------------------------------------------------------------------------------------------

# One etcd carries both clusters. It listens on unix sockets, which the API servers reach from any network namespace. The
# advertised addresses must have a host and a port and are used by nobody.
etcd() {
  spawn "$run/etcd.log" "$bin" etcd --name etcd --data-dir "$run/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "unix://$run/etcd.sock" --advertise-client-urls http://localhost:2379 \
    --listen-peer-urls "unix://$run/etcd-peer.sock" --initial-advertise-peer-urls http://localhost:2380 \
    --initial-cluster etcd=http://localhost:2380
  until_true 20 "etcd" test -S "$run/etcd.sock"
}

apiserver() {
  local c="$1" d="$run/$1"
  spawn "$d/apiserver.log" ip netns exec "$prefix-$c" "$bin" apiserver \
    --etcd-servers="unix://$run/etcd.sock" --etcd-prefix="/$c" \
    --bind-address=0.0.0.0 --advertise-address="${NODE_IP[$c]}" --secure-port=6443 \
    --service-cluster-ip-range="$SERVICE_CIDR" \
    --tls-cert-file="$d/apiserver.crt" --tls-private-key-file="$d/apiserver.key" --cert-dir="$d" \
    --client-ca-file="$d/ca.crt" --authorization-mode=Node,RBAC \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$d/sa.pub" --service-account-signing-key-file="$d/sa.key" \
    --requestheader-client-ca-file="$d/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$d/front-proxy-client.crt" --proxy-client-key-file="$d/front-proxy-client.key" \
    --audit-policy-file="$here/manifests/audit.yaml" --audit-log-path="$d/audit.log"
  echo "$spawned" > "$d/apiserver.pid"
}

controllers() {
  local c="$1" d="$run/$1"
  spawn "$d/controller-manager.log" ip netns exec "$prefix-$c" "$bin" controller-manager \
    --kubeconfig="$d/controller-manager.conf" --authentication-kubeconfig="$d/controller-manager.conf" \
    --authorization-kubeconfig="$d/controller-manager.conf" --bind-address=127.0.0.1 --cert-dir="$d" \
    --leader-elect=false --use-service-account-credentials=true \
    --service-account-private-key-file="$d/sa.key" --root-ca-file="$d/ca.crt" \
    --controllers=serviceaccount-token-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,namespace-controller,garbage-collector-controller,endpointslice-controller
  echo "$spawned" > "$d/controller-manager.pid"
}

service_proxy() {
  local c="$1" d="$run/$1"
  spawn "$d/proxy.log" ip netns exec "$prefix-$c" "$bin" proxy \
    --kubeconfig="$d/kube-proxy.conf" --hostname-override=node --proxy-mode="${SMOKE_PROXY_MODE:-nftables}" \
    --cluster-cidr="$POD_CIDR" --nodeport-addresses=primary \
    --healthz-bind-address=127.0.0.1:10256 --metrics-bind-address=127.0.0.1:10249 \
    --conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0s \
    --conntrack-tcp-timeout-close-wait=0s
  echo "$spawned" > "$d/proxy.pid"
}

dns() {
  local c="$1"
  kubectl "$c" apply -f "$here/manifests/coredns.yaml" > /dev/null
  pod_object "$c" kube-system coredns "k8s-app: kube-dns" 10.244.0.2 coredns
  in_pod "$c" kube-system coredns coredns "$bin" coredns -conf "$here/manifests/Corefile"
  echo "$spawned" > "$run/$c/coredns.pid"
}

# cluster CLUSTER: from nothing to a cluster that resolves and reaches its own API server.
cluster() {
  local c="$1" started; started="$(now)"
  mkdir -p "$run/$c"
  "$bin" certs --dir "$run/$c" --server "https://${NODE_IP[$c]}:6443" --names "$API_IP"
  node "$c"
  apiserver "$c"
  pod "$c" coredns 10.244.0.2
  pod "$c" client 10.244.0.20
  until_true 30 "API server of $c" kubectl "$c" get --raw /readyz
  say "cluster $c: API server ready after $(since "$started") s"
  node_object "$c" | kubectl "$c" create -f - > /dev/null
  controllers "$c"
  service_proxy "$c"
  dns "$c"
  until_true 30 "DNS of $c" resolves "$c" kubernetes.default.svc.cluster.local "$API_IP"
  say "cluster $c: DNS answers at its ClusterIP after $(since "$started") s"
}

resolves() {
  [ "$(in_ns "$1-client" dig +short +time=1 +tries=1 "$2")" = "$3" ]
}

memory() {
  local c="$1" pid part rss pss total_rss=0 total_pss=0
  for part in apiserver controller-manager proxy coredns; do
    pid="$(cat "$run/$c/$part.pid")"
    rss="$(awk '/^Rss:/ {print int($2 / 1024)}' "/proc/$pid/smaps_rollup")"
    pss="$(awk '/^Pss:/ {print int($2 / 1024)}' "/proc/$pid/smaps_rollup")"
    total_rss=$((total_rss + rss)) total_pss=$((total_pss + pss))
    printf '          %-20s %4d MiB resident, %4d MiB as its share\n' "$part" "$rss" "$pss"
  done
  printf '          %-20s %4d MiB resident, %4d MiB as its share\n' "cluster $c" "$total_rss" "$total_pss"
}

# both FUNCTION: runs it for the two clusters at the same time.
both() {
  local first second
  "$1" a & first=$!
  "$1" b & second=$!
  wait "$first" || fail "$1 of cluster a"
  wait "$second" || fail "$1 of cluster b"
}
