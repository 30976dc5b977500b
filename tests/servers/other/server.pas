{ server PORT: answers with the client's port. }
{$mode objfpc}
program server;
uses cthreads, sysutils, ssockets, sockets;

type
  TServer = class(TInetServer)
    procedure Answer(Sender: TObject; Client: TSocketStream);
  end;

procedure TServer.Answer(Sender: TObject; Client: TSocketStream);
var
  Head: array[0..4095] of byte;
  Peer: TInetSockAddr;
  Size: TSockLen;
  Text: string;
begin
  Client.Read(Head, sizeof(Head));
  Size := sizeof(Peer);
  fpgetpeername(Client.Handle, @Peer, @Size);
  Text := 'HTTP/1.1 200 OK'#13#10'Connection: close'#13#10#13#10'peer ' + IntToStr(ntohs(Peer.sin_port)) + #10;
  Client.Write(Text[1], Length(Text));
  Client.Free;
end;

var
  It: TServer;
begin
  It := TServer.Create('127.0.0.1', StrToInt(ParamStr(1)));
  It.ReuseAddress := true;
  It.OnConnect := @It.Answer;
  It.StartAccepting;
end.
