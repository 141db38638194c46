package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// certLifetime is how long each certificate is valid: a test bed lives for
	// minutes, a day leaves room for one that is left running.
	certLifetime = 24 * time.Hour
	// certBackdate makes certificates valid a little before now, for programs
	// run under a clock that is set back.
	certBackdate = time.Hour
)

// clientIdentity is a user of the API server known by its client certificate.
type clientIdentity struct {
	// file is the name of the kubeconfig, as kubeadm names it.
	file string
	// user is the common name: the user the API server sees.
	user string
	// groups are the organizations: the groups the API server sees.
	groups []string
}

// clientIdentities are the identities that RBAC's own bootstrap policy knows,
// so that no component holds more rights than it does in a real cluster.
var clientIdentities = []clientIdentity{
	{file: "admin.conf", user: "kubernetes-admin", groups: []string{"system:masters"}},
	{file: "controller-manager.conf", user: "system:kube-controller-manager"},
	{file: "kube-proxy.conf", user: "system:kube-proxy"},
}

// runCerts writes the credentials of one cluster.
func runCerts() int {
	flags := flag.NewFlagSet("certs", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder to write to; made where it is missing")
	server := flags.String("server", "", "URL the kubeconfigs name, for example https://192.0.2.1:6443")
	names := flags.String("names", "", "comma-separated addresses and names of the API server besides the host of --server "+
		"and those every cluster has (kubernetes.default.svc and so on)")
	switch err := flags.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if *dir == "" || *server == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "certs: --dir and --server are needed and nothing else is taken; see certs --help")
		return 2
	}
	if err := writeCredentials(*dir, *server, *names); err != nil {
		fmt.Fprintln(os.Stderr, "certs:", err)
		return 1
	}
	return 0
}

// writeCredentials makes a new CA and everything it signs.
func writeCredentials(dir, server, names string) error {
	location, err := url.Parse(server)
	if err != nil || location.Hostname() == "" {
		return fmt.Errorf("--server %q is no URL with a host; give for example https://192.0.2.1:6443", server)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(dir, "ca", "kubernetes")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(dir, "front-proxy-ca", "front-proxy")
	if err != nil {
		return err
	}
	serving := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	addSubjects(serving, append(strings.Split(names, ","), location.Hostname(), "localhost", "127.0.0.1",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"))
	if _, _, err := ca.issue(dir, "apiserver", serving); err != nil {
		return err
	}
	if _, _, err := frontProxy.issue(dir, "front-proxy-client", clientCertificate("front-proxy-client", nil)); err != nil {
		return err
	}
	if err := writeServiceAccountKey(dir); err != nil {
		return err
	}
	for _, identity := range clientIdentities {
		stem := strings.TrimSuffix(identity.file, ".conf")
		cert, key, err := ca.issue(dir, stem, clientCertificate(identity.user, identity.groups))
		if err != nil {
			return err
		}
		if err := writeKubeconfig(filepath.Join(dir, identity.file), server, identity.user, ca.pem, cert, key); err != nil {
			return err
		}
	}
	return nil
}

// addSubjects adds each address or name to the names of a certificate.
func addSubjects(template *x509.Certificate, names []string) {
	for _, name := range names {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		if address := net.ParseIP(name); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
}

// clientCertificate is the template of a client certificate.
func clientCertificate(user string, groups []string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// authority signs the certificates of one cluster.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// newAuthority makes a self-signed CA and writes it as stem.crt and stem.key.
func newAuthority(dir, stem, name string) (*authority, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}
	made := &authority{}
	encoded, _, err := made.issue(dir, stem, template)
	if err != nil {
		return nil, err
	}
	made.pem = encoded
	return made, nil
}

// issue signs the template with a new key (with that key itself where the
// authority has none yet), writes stem.crt and stem.key and returns both in PEM.
func (a *authority) issue(dir, stem string, template *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	// 127 bits: a positive serial number of at most the 20 octets RFC 5280 allows.
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, err
	}
	template.NotBefore = time.Now().Add(-certBackdate)
	template.NotAfter = time.Now().Add(certLifetime)
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot sign %s: %w", stem, err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			return nil, nil, err
		}
		a.key = key
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, stem+".crt"), certPEM, 0o644); err != nil {
		return nil, nil, err
	}
	keyPEM, err = writePrivateKey(filepath.Join(dir, stem+".key"), key)
	return certPEM, keyPEM, err
}

// writeServiceAccountKey writes the key that signs service account tokens.
func writeServiceAccountKey(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if _, err := writePrivateKey(filepath.Join(dir, "sa.key"), key); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	return os.WriteFile(filepath.Join(dir, "sa.pub"), encoded, 0o644)
}

// writePrivateKey writes the key, readable by its owner only, and returns it in PEM.
// SEC 1 ("EC PRIVATE KEY") is the form every component reads, the controller
// manager's service account key included.
func writePrivateKey(path string, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return encoded, os.WriteFile(path, encoded, 0o600)
}

// writeKubeconfig writes a kubeconfig that holds its credentials itself.
func writeKubeconfig(path, server, user string, ca, cert, key []byte) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["kubernetes"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config.Contexts["kubernetes"] = &clientcmdapi.Context{Cluster: "kubernetes", AuthInfo: user}
	config.CurrentContext = "kubernetes"
	return clientcmd.WriteToFile(*config, path)
}
