package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"authsession/internal/strictjson"
)

// What -dev answers in place of the rest of the reference platform, so that a backend which gets a token and creates an
// end user first runs with only its base URL changed. Production has none of this: a gateway routes it elsewhere.

// mintToken is POST /token: for any client_id and client_secret it answers with a token of that client.
func (a *api) mintToken(w http.ResponseWriter, r *http.Request, n *note) error {
	body, err := a.readBody(w, r, "")
	if err != nil {
		return err
	}
	id, secret, err := clientCredentials(r, body)
	if err != nil {
		return badRequest("the body "+err.Error(), err)
	}
	if id == "" || secret == "" {
		return badRequest("client_id and client_secret are required: as JSON, as a form, or by HTTP Basic", nil)
	}
	if err := checkID(id, 128); err != nil {
		return badRequest("client_id "+err.Error(), nil)
	}
	n.bearer.ClientID = id
	token, lifetime, err := a.issue(id)
	if err != nil {
		return err
	}
	answer := appendText([]byte(`{`), `"token":`, token)
	answer = appendText(answer, `,"access_token":`, token)
	answer = append(answer, `,"token_type":"Bearer","expires_in":`...)
	return writeJSON(w, strconv.AppendInt(answer, int64(lifetime.Seconds()), 10))
}

// clientCredentials reads what a client calls itself by: HTTP Basic (RFC 6749, section 2.3.1), a form, or JSON. What is
// not given is "".
func clientCredentials(r *http.Request, body []byte) (id, secret string, err error) {
	if id, secret, ok := r.BasicAuth(); ok {
		plainID, _ := url.QueryUnescape(id)
		plainSecret, _ := url.QueryUnescape(secret)
		return plainID, plainSecret, nil
	}
	const form = "application/x-www-form-urlencoded" // curl -d says that of JSON, too
	if strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), form) && !bytes.HasPrefix(body, []byte("{")) {
		values, err := url.ParseQuery(string(body))
		if err != nil {
			err = errors.New("must be a form with good escapes") // url's own error quotes what it was given
		}
		return values.Get("client_id"), values.Get("client_secret"), err
	}
	err = strictjson.Object(body, func(name, value []byte) {
		switch string(name) {
		case "client_id":
			id, _ = strictjson.Text(value)
		case "client_secret":
			secret, _ = strictjson.Text(value)
		}
	})
	return id, secret, err
}

// createEndUser is POST /end-users: with a token it answers with a new end user's id, and keeps nothing.
func (a *api) createEndUser(w http.ResponseWriter, r *http.Request, n *note) error {
	who, err := a.authenticate(r)
	if err != nil {
		return err
	}
	n.bearer = who
	name := "eu_2" + rand.Text() // 27 letters and digits, as a KSUID of these years
	return writeJSON(w, appendText(appendText([]byte(`{`), `"end_user_id":`, name), `,"id":`, name))
}
