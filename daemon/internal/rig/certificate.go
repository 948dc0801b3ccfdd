package rig

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"time"
)

// writeLocalhostCertificate makes a certification authority and a certificate for
// localhost and other hosts, both good for a day, and the latter signed as is wanted. Both
// certificates go into caFile; that for localhost, with its key, into serverFile.
// The authority's key is thrown away.
func writeLocalhostCertificate(caFile, serverFile string, signature x509.SignatureAlgorithm, others ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	var caKey crypto.Signer = key
	switch signature {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384:
		caKey, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		caKey, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "rig authority"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageCertSign,
		IsCA:         true, BasicConstraintsValid: true,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "localhost"},
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     append([]string{"localhost"}, others...),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},

		SignatureAlgorithm: signature,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	vouching := append(block("CERTIFICATE", caDER), block("CERTIFICATE", leafDER)...)
	if err := os.WriteFile(caFile, vouching, 0o600); err != nil {
		return err
	}
	server := append(block("CERTIFICATE", leafDER), block("PRIVATE KEY", keyDER)...)
	return os.WriteFile(serverFile, server, 0o600)
}
