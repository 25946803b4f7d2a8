// A client generated from proto/notify.proto alone; arguments: URL TOKEN CHAT. It prints "ready" once
// subscribed, then one line for each message and event of the chat, and ends after two.
package main

import (
	"fmt"
	"log"
	"os"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/proto"

	"notify/notifypb"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func send(connection *websocket.Conn, message *notifypb.ClientMessage) {
	frame, err := proto.Marshal(&notifypb.ClientFrame{Messages: []*notifypb.ClientMessage{message}})
	check(err)
	check(connection.WriteMessage(websocket.BinaryMessage, frame))
}

func main() {
	url, token, chat := os.Args[1], os.Args[2], os.Args[3]
	dialer := websocket.Dialer{Subprotocols: []string{"notify.v1.protobuf"}, HandshakeTimeout: 10 * time.Second}
	connection, _, err := dialer.Dial(url, nil)
	check(err)
	defer connection.Close()
	check(connection.SetReadDeadline(time.Now().Add(30 * time.Second)))
	auth := &notifypb.Auth{Token: token, Features: []string{"events"}}
	send(connection, &notifypb.ClientMessage{Body: &notifypb.ClientMessage_Auth{Auth: auth}})
	subscribe := &notifypb.Subscribe{ChatIdText: chat}
	send(connection, &notifypb.ClientMessage{
		Request: &notifypb.ClientMessage_Id{Id: 1},
		Body:    &notifypb.ClientMessage_Subscribe{Subscribe: subscribe},
	})
	for seen := 0; seen < 2; {
		_, data, err := connection.ReadMessage()
		check(err)
		frame := &notifypb.ServerFrame{}
		check(proto.Unmarshal(data, frame))
		for _, message := range frame.Messages {
			switch body := message.Body.(type) {
			case *notifypb.ServerMessage_AuthResult:
				fmt.Println("granted", body.AuthResult.Features)
			case *notifypb.ServerMessage_Subscribed:
				fmt.Println("ready", body.Subscribed.ChatIdText)
			case *notifypb.ServerMessage_ChatMessage:
				fmt.Println("message", body.ChatMessage.MessageId, body.ChatMessage.SenderIdText, body.ChatMessage.Content)
				seen++
			case *notifypb.ServerMessage_ChatEvent:
				fmt.Println("event", body.ChatEvent.Kind, body.ChatEvent.GetRefersTo(), string(body.ChatEvent.Data))
				seen++
			case *notifypb.ServerMessage_Error:
				log.Fatal(body.Error)
			}
		}
	}
}
