package bearer

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
)

const maxCertificate = 8 << 10 // bytes of its header

// checkCertificate checks what a token is bound to by its claim cnf: nothing but the certificate that came along (RFC
// 8705, section 3.1). It returns the hash of the certificate's header.
func checkCertificate(cnf []byte, header []string) (hash [sha256.Size]byte, err error) {
	confirmation, err := parseObject(cnf)
	if err != nil || len(confirmation) != 1 || confirmation.text("x5t#S256") == "" {
		return hash, errors.New("bound (cnf) to other than a certificate by x5t#S256")
	}
	if len(header) != 1 {
		return hash, errors.New("bound to a certificate (cnf), and not one header of CLIENT_CERT_HEADER came along")
	}
	der, ok := certificate(header[0])
	if !ok {
		return hash, errors.New("bound to a certificate (cnf), and CLIENT_CERT_HEADER holds none")
	}
	if sum := sha256.Sum256(der); base64.RawURLEncoding.EncodeToString(sum[:]) != confirmation.text("x5t#S256") {
		return hash, errors.New("bound to another certificate (cnf)")
	}
	return hashCertificate(header[0]), nil
}

// certificate returns the first certificate of a header: RFC 9440's base64 between colons, or PEM escaped as in a URL,
// which is nginx's $ssl_client_escaped_cert. A comma is in neither: it joins the headers of two who wrote one.
func certificate(header string) (der []byte, ok bool) {
	text, err := url.PathUnescape(header)
	if err != nil || len(header) > maxCertificate || strings.Contains(header, ",") {
		return nil, false
	}
	encoded, isPEM := strings.CutPrefix(text, "-----BEGIN CERTIFICATE-----")
	if isPEM {
		encoded, _, ok = strings.Cut(encoded, "-----END CERTIFICATE-----")
	} else if encoded, ok = strings.CutPrefix(header, ":"); ok {
		encoded, ok = strings.CutSuffix(encoded, ":")
	}
	// Padding may be missing (RFC 8941, section 4.2.7). Line ends within are passed over.
	der, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "=\r\n"))
	return der, ok && err == nil && len(der) > 0
}

// hashCertificate makes no garbage of a usual header. Its stack is not for tokens that are not bound.
//
//go:noinline
func hashCertificate(header string) [sha256.Size]byte {
	return sha256.Sum256(append(make([]byte, 0, 4096), header[:min(len(header), maxCertificate+1)]...))
}
