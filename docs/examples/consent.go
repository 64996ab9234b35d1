// go run consent.go show SESS_ID | approve SESS_ID CONSENT_ID | cancel SESS_ID
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log"
	"net/url"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"
)

var commands = map[string]string{"show": "GET", "approve": "GETDEL", "cancel": "GETDEL"}

func main() {
	// Check the arguments first, because GETDEL uses the session up.
	args := os.Args[1:]
	if len(args) < 2 || commands[args[0]] == "" || (len(args) == 3) != (args[0] == "approve") || args[len(args)-1] == "" {
		log.Fatal("usage: show SESS_ID | approve SESS_ID CONSENT_ID | cancel SESS_ID")
	}
	action, sessID := args[0], args[1]
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal(err)
	}
	key := fmt.Sprintf("%s%x", os.Getenv("KEY_PREFIX"), sha256.Sum256([]byte(sessID)))
	value, err := redis.NewClient(options).Do(context.Background(), commands[action], key).Text()
	if err == redis.Nil {
		log.Fatal("gone: expired, used or never there")
	}
	if err != nil {
		log.Fatal(err) // after GETDEL, the session may be used up: start again
	}
	opened, err := open([]byte(value), sessID)
	var record struct {
		Version     int    `json:"v"`
		ID          string `json:"id"`
		RedirectURI string `json:"redirect_uri"`
		CancelURI   string `json:"cancel_uri"`
	}
	if err != nil || json.Unmarshal(opened, &record) != nil || record.Version != 1 {
		log.Fatal("not a record of version 1")
	}
	switch action {
	case "show":
		fmt.Println(string(opened))
	case "approve":
		fmt.Println(add(record.RedirectURI, url.Values{"consent_id": {args[2]}}))
	case "cancel":
		fmt.Println(add(record.CancelURI, url.Values{
			"error":             {"access_denied"},
			"error_type":        {"CONSENT_ENDUSER_DENIED"},
			"error_id":          {record.ID},
			"error_description": {"The end user did not consent."},
			"error_uri":         {"https://consent.example.com/errors#denied"},
		}))
	}
}

// open returns the record's JSON, of a sealed or a plain value.
func open(value []byte, sessID string) ([]byte, error) {
	if len(value) == 0 || value[0] != 1 {
		return value, nil
	}
	mac := hmac.New(sha256.New, []byte(sessID))
	mac.Write([]byte("authsession record"))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, nil, value[1:], nil)
}

// add appends members to uri's query and changes no byte of uri. It fails if there is no uri.
func add(uri string, members url.Values) string {
	if uri == "" {
		log.Fatal("no URI: show the outcome, or post it to the framing page")
	}
	separator := "?"
	if strings.Contains(uri, "?") {
		separator = "&"
	}
	return uri + separator + members.Encode()
}
