// consent show|approve|cancel SESS_ID [CONSENT_ID]
package main

import (
	"context"
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
	action, sessID, consentID := os.Args[1], os.Args[2], os.Args[3:]
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal(err)
	}
	key := fmt.Sprintf("%s%x", os.Getenv("KEY_PREFIX"), sha256.Sum256([]byte(sessID)))
	value, err := redis.NewClient(options).Do(context.Background(), commands[action], key).Text()
	if err == redis.Nil {
		log.Fatal("gone: expired, used or never there")
	}
	var record struct {
		Version     int    `json:"v"`
		ID          string `json:"id"`
		RedirectURI string `json:"redirect_uri"`
		CancelURI   string `json:"cancel_uri"`
	}
	if err != nil || json.Unmarshal([]byte(value), &record) != nil || record.Version != 1 {
		log.Fatalf("no record of version 1: %v", err)
	}
	switch action {
	case "show":
		fmt.Println(value)
	case "approve":
		fmt.Println(add(record.RedirectURI, url.Values{"consent_id": consentID}))
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

// add changes no byte of uri; without one there is nowhere to go.
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
