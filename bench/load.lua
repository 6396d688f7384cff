-- The requests that wrk sends: an entry of one of 1,000 users, with a message id of its own. The first argument names the run.

local numbers, run = 0, ''

function init(args)
  run = args[1]
end

function request()
  numbers = numbers + 1
  local entry = '{"message_id":"%s-%09d","user_id":"user-%04d","role":"user","text":"hello, where is my order?"}'
  return wrk.format('POST', nil, nil, string.format(entry, run, numbers, numbers % 1000))
end
