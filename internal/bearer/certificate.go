package bearer

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/url"
	"strings"
)

const maxCertificateBytes = 8 << 10 // of the header

// thumbprint returns the thumbprint of the certificate that a token's claim cnf binds it to: its SHA-256 in base64url
// (RFC 8705, section 3.1). It returns "" if there is no cnf, and an error if the token is bound in any other way.
func (m members) thumbprint() (string, error) {
	if m["cnf"] == nil {
		return "", nil
	}
	confirmation, err := parseObject(m["cnf"])
	thumbprint := confirmation.text("x5t#S256")
	if err != nil || len(confirmation) != 1 || thumbprint == "" {
		return "", errors.New("bound (cnf) by something other than x5t#S256 alone")
	}
	return thumbprint, nil
}

// checkCertificate checks that the values of the certificate header are exactly one, with the certificate that the
// token is bound to. A token that is not bound needs none.
func (t verifiedToken) checkCertificate(header []string) error {
	if t.thumbprint == "" {
		return nil
	}
	if len(header) != 1 {
		return errors.New("bound to a certificate (cnf), but the request does not have CLIENT_CERT_HEADER exactly once")
	}
	der, ok := parseCertificate(header[0])
	if !ok {
		return errors.New("bound to a certificate (cnf), but CLIENT_CERT_HEADER has none")
	}
	if sum := sha256.Sum256(der); base64.RawURLEncoding.EncodeToString(sum[:]) != t.thumbprint {
		return errors.New("bound to another certificate (cnf)")
	}
	return nil
}

// parseCertificate returns the certificate of a header value: base64 of its DER between colons (RFC 9440, section 2.1)
// or bare, or PEM that is escaped for URLs, as in nginx's $ssl_client_escaped_cert. Of several PEM certificates it
// returns the first, which is the client's. A comma belongs to no form, because it joins two values. If bytes follow
// the certificate, der includes them, so its hash matches no token.
func parseCertificate(header string) (der []byte, ok bool) {
	if len(header) > maxCertificateBytes || strings.Contains(header, ",") {
		return nil, false
	}
	text, _ := url.PathUnescape(header) // "" after a malformed escape
	if block, _ := pem.Decode([]byte(text)); block != nil {
		return block.Bytes, block.Type == "CERTIFICATE"
	}
	encoded, begins := strings.CutPrefix(header, ":")
	encoded, ends := strings.CutSuffix(encoded, ":")
	der, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "=")) // RFC 8941, section 4.2.7
	return der, err == nil && len(der) > 0 && begins == ends                        // two colons or none
}
