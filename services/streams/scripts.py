"""Lua scripts on Redis: each is one atomic step in one round trip.

KEYS and ARGV are listed above each. RENEW and RELEASE check who owns an entry before they claim it, as XCLAIM alone
would give a lease to any caller.
"""

GROUP = "generators"
"""The consumer group of the task stream."""
RELEASED = "-released"
"""Consumer that owns released leases; no generator id starts with a hyphen."""
RELEASED_IDLE_MS = 86_400_000
"""Idle time set on a released entry: longer than any lease, so that the next `lease` gets it."""

# In front of every script of the learner; its last key is that of the epoch, its last argument the learner's epoch.
# A Redis that came back empty has no epoch; it gets this one.
FENCED = """
local epoch_key, epoch = table.remove(KEYS), table.remove(ARGV)
local newest = tonumber(redis.call('GET', epoch_key) or 0) or 0
if newest > tonumber(epoch) then return redis.error_reply('FENCED ' .. string.format('%.0f', newest)) end
if newest < tonumber(epoch) then redis.call('SET', epoch_key, epoch) end
"""

_OPEN_GROUP = """
local function open_group(tasks, group, mark_key, mark)
  if redis.call('SET', mark_key, mark, 'NX') then
    redis.pcall('XGROUP', 'CREATE', tasks, group, '0', 'MKSTREAM')
  end
end
"""

_FORGET = """
local function forget(tasks, open, entry_id, task_id)
  redis.pcall('XDEL', tasks, entry_id)
  if redis.call('HGET', open, task_id) == entry_id then redis.call('HDEL', open, task_id) end
end
"""

# KEYS tasks incarnation; ARGV group mark. Returns "<mark in Redis>/<id of the server process>".
IDENTIFY = (
    _OPEN_GROUP
    + """
open_group(KEYS[1], ARGV[1], KEYS[2], ARGV[2])
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
return redis.call('GET', KEYS[2]) .. '/' .. server
"""
)

# Whether the entry of an open task is this very task. It may be gone (Redis evicted the stream and kept the rest, or a
# copy of it was restored in part), belong to another task, or be changed, if only by settings that are others now.
_ENTRY_OF = """
local function entry_of(tasks, id, meta, prompt)
  local found = redis.pcall('XRANGE', tasks, id, id)
  local fields = not found.err and found[1] and found[1][2]
  return fields and #fields == 4 and fields[2] == meta and fields[4] == prompt
end
"""

# KEYS tasks open incarnation; ARGV group mark, then (task_id meta prompt) of each. Returns how many were new.
ISSUE = (
    _OPEN_GROUP
    + _ENTRY_OF
    + """
open_group(KEYS[1], ARGV[1], KEYS[3], ARGV[2])
local issued = 0
for i = 3, #ARGV, 3 do
  local open = redis.call('HGET', KEYS[2], ARGV[i])
  if not (open and entry_of(KEYS[1], open, ARGV[i + 1], ARGV[i + 2])) then
    if open then
      redis.pcall('XACK', KEYS[1], ARGV[1], open)
      redis.pcall('XDEL', KEYS[1], open)
    end
    local id = redis.call('XADD', KEYS[1], '*', 'meta', ARGV[i + 1], 'prompt', ARGV[i + 2])
    redis.call('HSET', KEYS[2], ARGV[i], id)
    issued = issued + 1
  end
end
return issued
"""
)

# Whether an entry can still be leased: the group has not come to it, or it is somebody's lease. One that was
# acknowledged without its rollouts, or passed over, is neither.
_LEASABLE = f"""
local function number_of(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function last_delivered(tasks)
  local groups = redis.pcall('XINFO', 'GROUPS', tasks)
  for _, group in ipairs(groups.err and {{}} or groups) do
    local found = {{}}
    for i = 1, #group, 2 do found[group[i]] = group[i + 1] end
    if found['name'] == '{GROUP}' then return number_of(found['last-delivered-id']) end
  end
end
local function leasable(tasks, id, last_ms, last_seq)
  local ms, seq = number_of(id)
  if not last_ms or ms > last_ms or (ms == last_ms and seq > last_seq) then return true end
  local pending = redis.pcall('XPENDING', tasks, '{GROUP}', id, id, 1)
  return not pending.err and #pending > 0
end
"""

# KEYS tasks open; ARGV (task_id meta prompt) of each. Returns the ids of those that are not open, and closes those that
# could never be leased as what they are.
UNKNOWN = (
    _ENTRY_OF
    + _LEASABLE
    + """
local unknown = {}
local last_ms, last_seq = last_delivered(KEYS[1])
for i = 1, #ARGV, 3 do
  local id = redis.call('HGET', KEYS[2], ARGV[i])
  if id and not (entry_of(KEYS[1], id, ARGV[i + 1], ARGV[i + 2]) and leasable(KEYS[1], id, last_ms, last_seq)) then
    redis.pcall('XDEL', KEYS[1], id)
    redis.call('HDEL', KEYS[2], ARGV[i])
    id = false
  end
  if not id then unknown[#unknown + 1] = ARGV[i] end
end
return unknown
"""
)

# KEYS tasks open; ARGV group, then task ids. Returns how many were open.
CLOSE = (
    _FORGET
    + """
local closed = 0
for i = 2, #ARGV do
  local id = redis.call('HGET', KEYS[2], ARGV[i])
  if id then
    redis.pcall('XACK', KEYS[1], ARGV[1], id)
    forget(KEYS[1], KEYS[2], id, ARGV[i])
    closed = closed + 1
  end
end
return closed
"""
)

# `refused` holds generator -> "<until, server's seconds> <reason>".
_REFUSED = """
local function refused(key, generator_id)
  local entry = redis.call('HGET', key, generator_id)
  if not entry then return false end
  local till, reason = string.match(entry, '^(%d+) (.*)$')
  if till and tonumber(till) > tonumber(redis.call('TIME')[1]) then return redis.error_reply('REFUSED ' .. reason) end
  return false
end
"""

# KEYS refused; ARGV generator_id seconds reason. Those of long ago are forgotten when there are many.
REFUSE = """
if redis.call('HLEN', KEYS[1]) >= 1000 then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d ', redis.call('TIME')[1] + ARGV[2]) .. ARGV[3])
return 1
"""

# KEYS tasks counters refused; ARGV group consumer lease_ms cursor count.
# Returns {next cursor, TIME, {{id, deliveries, fields}, ...}}: expired leases first: the oldest round waits for them.
LEASE = (
    _REFUSED
    + """
local tasks, group, consumer, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[5])
local refusal = refused(KEYS[3], consumer)
if refusal then return refusal end
local expired = redis.call('XAUTOCLAIM', tasks, group, consumer, ARGV[3], ARGV[4], 'COUNT', count)
local taken = {}
for _, entry in ipairs(expired[2]) do
  local deliveries = redis.call('XPENDING', tasks, group, entry[1], entry[1], 1)[1][4]
  if deliveries > 1 then redis.pcall('HINCRBY', KEYS[2], 'reissued', 1) end
  taken[#taken + 1] = {entry[1], deliveries, entry[2]}
end
if #taken < count then
  local fresh = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count - #taken, 'STREAMS', tasks, '>')
  for _, entry in ipairs(fresh and fresh[1][2] or {}) do
    taken[#taken + 1] = {entry[1], 1, entry[2]}
  end
end
return {expired[1], redis.call('TIME'), taken}
"""
)

# KEYS tasks; ARGV group consumer, then entry ids. Returns the ids that the consumer owns, their idle time now 0.
RENEW = """
local owned = {}
for i = 3, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) > 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    owned[#owned + 1] = ARGV[i]
  end
end
return owned
"""

# KEYS tasks; ARGV group consumer released idle_ms, then entry ids. Returns how many the consumer owned.
# The delivery is not counted: the task did not cause the drain.
RELEASE = """
local released = 0
for i = 5, #ARGV do
  local owned = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])[1]
  if owned then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[i],
      'IDLE', ARGV[4], 'RETRYCOUNT', math.max(owned[4] - 1, 0), 'JUSTID')
    released = released + 1
  end
end
return released
"""

# KEYS tasks; ARGV group consumer released idle_ms count. Returns how many entries the consumer may still own.
LEAVE = """
local owned = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[5], ARGV[2])
for _, entry in ipairs(owned) do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, entry[1],
    'IDLE', ARGV[4], 'RETRYCOUNT', math.max(entry[4] - 1, 0), 'JUSTID')
end
if #owned < tonumber(ARGV[5]) then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  return 0
end
return #owned
"""

# KEYS tasks open rollouts refused; ARGV group generator_id, then of each task: entry_id task_id samples, and (meta
# prompt response) of each sample. Returns 1 for each task, or 0 when it is no longer pending: another generator was
# first, or the learner closed it.
COMPLETE = (
    _FORGET
    + _REFUSED
    + """
local tasks, open, rollouts, group = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local refusal = refused(KEYS[4], ARGV[2])
if refusal then return refusal end
local completed, at = {}, 3
while at <= #ARGV do
  local entry_id, task_id, answers, next_task = ARGV[at], ARGV[at + 1], at + 3, at + 3 + 3 * ARGV[at + 2]
  local pending = #redis.call('XPENDING', tasks, group, entry_id, entry_id, 1)
  if pending > 0 then
    for i = answers, next_task - 1, 3 do
      redis.call('XADD', rollouts, '*', 'meta', ARGV[i], 'prompt', ARGV[i + 1], 'response', ARGV[i + 2])
    end
    redis.call('XACK', tasks, group, entry_id)  -- after the rollouts are there: nothing is undone when one is not taken
    forget(tasks, open, entry_id, task_id)
  end
  completed[#completed + 1] = pending
  at = next_task
end
return completed
"""
)

# KEYS tasks open dead_letters; ARGV group entry_id task_id max_length, then the fields of the dead letter.
REJECT = (
    _FORGET
    + """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))  -- a letter that is lost stops nobody
forget(KEYS[1], KEYS[2], ARGV[2], ARGV[3])
return 1
"""
)

# KEYS rollouts dead_letters; ARGV entry_id max_length, then the fields of the dead letter.
BURY = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
return 1
"""

# KEYS tasks rollouts dead_letters counters; ARGV group released.
# Returns {tasks, pending, released, rollouts, dead letters, reissued, TIME, id of the oldest task or ''}.
DEPTH = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1])
local owned, released = 0, 0
if not pending.err then
  owned = pending[1]
  for _, consumer in ipairs(pending[4] or {}) do
    if consumer[1] == ARGV[2] then released = tonumber(consumer[2]) end
  end
end
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return {redis.call('XLEN', KEYS[1]), owned, released, redis.call('XLEN', KEYS[2]), redis.call('XLEN', KEYS[3]),
  tonumber(redis.call('HGET', KEYS[4], 'reissued') or 0) or 0, redis.call('TIME'), oldest and oldest[1] or ''}
"""

# KEYS stream; ARGV id. Makes the stream anew of its entries up to the id: one that had later ones takes no earlier id
# again.
COPY_UNTIL = """
local kept = redis.call('XRANGE', KEYS[1], '-', ARGV[1])
redis.call('DEL', KEYS[1])
for _, entry in ipairs(kept) do redis.call('XADD', KEYS[1], entry[1], unpack(entry[2])) end
return #kept
"""

# KEYS rollouts; ARGV entry ids.
DELETE = "return redis.call('XDEL', KEYS[1], unpack(ARGV))"

# KEYS events; ARGV max_length, then the fields. Returns the event's id.
APPEND = "return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))"

# KEYS control; ARGV field value.
REQUEST = "return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])"

# KEYS control; ARGV field value. Removes the request if it still has that value; returns 1, else 0.
CLEAR_REQUEST = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""

# KEYS heartbeats; ARGV part_id heartbeat. Stores "<server's seconds.microseconds> <heartbeat>".
BEAT = """
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s.%06d ', time[1], time[2]) .. ARGV[2])
return 1
"""
