// Sends one JSON body to a server and prints the digit; asks again when it is told to.
//
//	go run predict.go models/digits/sample.json [http://127.0.0.1:8080]
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"
)

const tries = 5

// what the server answers: the outputs of the model, or a problem (RFC 9457)
type answer struct {
	Digit     int    `json:"digit"`
	Code      string `json:"code"`
	Detail    string `json:"detail"`
	RequestID string `json:"request_id"`
}

func predict(body []byte, url string) (answer, error) {
	client := http.Client{Timeout: 30 * time.Second}
	for left := tries - 1; ; left-- {
		reply, err := client.Post(url+"/predict", "application/json", bytes.NewReader(body))
		if err != nil {
			return answer{}, err
		}
		var told answer
		err = json.NewDecoder(reply.Body).Decode(&told)
		reply.Body.Close()
		if err != nil || reply.StatusCode == http.StatusOK {
			return told, err
		}
		if reply.StatusCode != http.StatusServiceUnavailable || left == 0 {
			return told, fmt.Errorf("%d %s: %s (request %s)", reply.StatusCode, told.Code, told.Detail, told.RequestID)
		}
		seconds, err := strconv.Atoi(reply.Header.Get("Retry-After"))
		if err != nil {
			seconds = 1
		}
		time.Sleep(time.Duration(seconds) * time.Second)
	}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("usage: predict SAMPLE [URL]")
	}
	url := "http://127.0.0.1:8080"
	if len(os.Args) > 2 {
		url = os.Args[2]
	}
	body, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	told, err := predict(body, url)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(told.Digit)
}
